"""A trainer of a tiny model on a few random rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module
from transformers import Trainer, TrainingArguments

from tests.hf.models import batch


def rows(name: str, count: int = 16) -> list[dict[str, torch.Tensor]]:
    inputs = batch(name, size=count)
    return [{key: value[i] for key, value in inputs.items()} for i in range(count)]


def trainer(model: Module, name: str, folder: Any, *, callbacks: list[Any] | None = None, **settings: Any) -> Trainer:
    """A trainer of three steps of four of sixteen rows, and of what ``settings`` says."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
            **settings,
        },
    )
    data = rows(name)
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
