"""A small BERT trained with the Trainer of transformers: whole blocks through sketches, bytes and noise in its logs."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from rmm_gnn.hf import RMMTrainerCallback, apply_rmm

set_seed(0)

# Sentences of 32 made-up words; the label says which of two words is the more frequent one.
words = torch.randint(2, 12, (1024, 32))
labels = ((words == 2).sum(1) > (words == 3).sum(1)).long()
rows = [{"input_ids": one, "labels": label} for one, label in zip(words, labels, strict=True)]

config = BertConfig(
    vocab_size=12, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
    attention_probs_dropout_prob=0.0,
)  # fmt: skip
model = BertForSequenceClassification(config)
apply_rmm(model, {"rate": 0.2, "codec": "int8"}, exclude="output-head", whole_block=True)  # before the Trainer is made

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=64, num_train_epochs=6, learning_rate=2e-3, logging_steps=24,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows[:768])
    trainer.remove_callback(PrinterCallback)  # this script prints what it shows
    RMMTrainerCallback(every=24).attach(trainer)
    trainer.train()
for entry in trainer.state.log_history[:-1]:
    print(
        f"step {entry['step']:2}: loss {entry['loss']:.3f}, {entry['rmm_saved_bytes'] / 2**20:.2f} MiB kept, "
        f"noise over the data's {entry['rmm_noise_to_sgd']:.2f}"
    )
model.eval()
with torch.no_grad():
    right = (model(words[768:]).logits.argmax(1) == labels[768:]).float().mean().item()
print(f"accuracy on sentences not seen: {100 * right:.1f} %")
