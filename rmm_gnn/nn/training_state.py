"""What a model holds from one training step to the next that is in no ``state_dict``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Module

from rmm_gnn.nn._row_norms import ATTRIBUTES


def training_state(model: Module) -> dict[str, dict[str, Tensor]]:
    """Return what a training run has to store besides ``state_dict`` to go on as if it had not stopped.

    ``state_dict`` has the keys of the layers that were replaced and no others.  Layers with ``importance_sampling``
    also hold the norms of their latest gradient's rows, 2 bytes a row, by which they draw rows at the next step.  Other
    families hold nothing.  Sketches draw their seeds from PyTorch's default generator of their device, whose state has
    to be stored as well; ``NoiseController`` and ``NoiseLR`` have a ``state_dict`` of their own.

    Args:
        model: Between two steps, after ``backward()``.

    Returns:
        Tensors by qualified name of the layer; the tensors are those of the model, not copies.

    Example:
        >>> import torch
        >>> from rmm_gnn import RMMConfig, convert_to_rmm
        >>> model = convert_to_rmm(torch.nn.Linear(8, 4), RMMConfig(rate=0.5, sketch="importance_sampling"))
        >>> model(torch.randn(10, 8)).sum().backward()
        >>> state = {"model": model.state_dict(), "training": training_state(model), "rng": torch.get_rng_state()}
        >>> load_training_state(model, state["training"])
    """
    held = {name: _held(module) for name, module in model.named_modules()}
    return {name: tensors for name, tensors in held.items() if tensors}


def load_training_state(model: Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Go on from what ``training_state`` returned.

    Args:
        model: Of the same layers; what it held before is dropped.
        state: Its tensors are moved to the device of the layer's parameters.

    Raises:
        ValueError: If ``state`` names a layer that the model lacks, or something that no layer holds.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in state if name not in modules]
    unknown += [f"{name}.{what}" for name, tensors in state.items() for what in tensors if what not in ATTRIBUTES]
    if unknown:
        raise ValueError(
            f"'state' must be what training_state returned of the same model (got {', '.join(unknown)}). "
            "Build and convert the model as it was."
        )
    for name, module in modules.items():
        for what, attribute in ATTRIBUTES.items():
            module.__dict__.pop(attribute, None)
            if what in state.get(name, {}):
                device = next(module.parameters()).device
                module.__dict__[attribute] = state[name][what].to(device)


def _held(module: Module) -> dict[str, Tensor]:
    return {what: module.__dict__[attribute] for what, attribute in ATTRIBUTES.items() if attribute in module.__dict__}
