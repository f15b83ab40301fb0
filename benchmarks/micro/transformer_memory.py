#!/usr/bin/env python3
"""What one training step of a RoBERTa-sized classifier keeps, exact and in ways to keep less: ledger and measured peak.

    python benchmarks/micro/transformer_memory.py                          # RoBERTa-base, 32 sequences of 128
    python benchmarks/micro/transformer_memory.py --batch 128 --out DIR    # the batch of the paper's Table 3 for MRPC
    python benchmarks/micro/transformer_memory.py --smoke                  # a tiny model, seconds

Weights and tokens are random: bytes depend on neither.  Every row is a model of its own, built from one seed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.files import write_figure, write_text

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.measure import stopwatch
from benchmarks.harness.script import parser_of
from rmm_gnn import MemoryReport, RMMConfig, memory_report

ATTENTION = "scaled_dot_product_attention"
_MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of its batch; the defaults are RoBERTa-base's."""

    batch: int = 32
    length: int = 128
    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50265
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way to train: its name, and what it does to a model."""

    name: str
    prepare: Callable[[nn.Module], None]


def rows(config: RMMConfig, low_bit: RMMConfig) -> list[Row]:
    """The ways that are compared; ``low_bit`` is ``config`` with its sketches in few bits."""
    from rmm_gnn.hf import apply_rmm

    def converted(model: nn.Module, config: RMMConfig, whole_block: bool) -> None:
        apply_rmm(model, config, whole_block=whole_block)

    def recomputed(model: nn.Module, config: RMMConfig | None) -> None:
        if config is not None:
            converted(model, config, True)
        recompute_attention(model)

    def blocks(model: nn.Module) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    return [
        Row("exact", lambda model: None),
        Row(f"rmm {config.rate:g}", partial(converted, config=config, whole_block=False)),
        Row(f"rmm {config.rate:g} + lean block", partial(converted, config=config, whole_block=True)),
        Row(f"rmm {low_bit.rate:g} {low_bit.codec} + lean block", partial(converted, config=low_bit, whole_block=True)),
        Row("exact, attention recomputed", partial(recomputed, config=None)),
        Row(f"rmm {config.rate:g} + lean block, attention recomputed", partial(recomputed, config=config)),
        Row("exact, every block recomputed", blocks),
    ]


def recompute_attention(model: nn.Module) -> None:
    """Have backward run every attention block of a BERT-type model again, projections and LayerNorm included."""
    for layer in model.base_model.encoder.layer:
        block = layer.attention
        block.forward = partial(checkpoint, type(block).forward.__get__(block), use_reentrant=False)


def build(shape: Shape) -> nn.Module:
    """A RoBERTa classifier with random weights, from seed 0."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.length + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        attention_probs_dropout_prob=shape.attention_dropout,
    )
    return RobertaForSequenceClassification(config).train()


class Step(nn.Module):
    """The model's loss as its output, under autocast where a type is given."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model, self._autocast = model, autocast

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            return self.model(input_ids=tokens, labels=labels).loss


def make(row: Row, shape: Shape, device: torch.device, autocast: torch.dtype | None) -> tuple[Step, Tensor, Tensor]:
    """The row's model, tokens and labels."""
    model = build(shape)
    row.prepare(model)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, shape.vocabulary, (shape.batch, shape.length), generator=generator)
    labels = torch.randint(0, 2, (shape.batch,), generator=generator)
    return Step(model.to(device), autocast), tokens.to(device), labels.to(device)


def time_steps(ways: dict[str, tuple[Step, Tensor, Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of forward and backward, each way once a round; a round before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds + 1), unit="round", disable=None):
        for name, (step, tokens, labels) in ways.items():
            with stopwatch(tokens.device, seconds[name] if number else []):
                step(tokens, labels).backward()
            step.zero_grad()
    return seconds


def summary(name: str, report: MemoryReport, exact: MemoryReport) -> list[str]:
    """The row's cells: kept in all, and outside of attention's kernel, and the peak, each with its share saved."""
    saved, base = report.saved_bytes, exact.saved_bytes
    outside, base_outside = (r.saved_bytes - r.by_operator().get(ATTENTION, 0) for r in (report, exact))
    cells = [name, f"{saved / _MIB:.1f}", _less(saved, base), f"{outside / _MIB:.1f}", _less(outside, base_outside)]
    if report.peak_bytes is None or exact.peak_bytes is None:
        return [*cells, "n/a", "n/a"]
    return [*cells, f"{report.peak_bytes / _MIB:.0f}", _less(report.peak_bytes, exact.peak_bytes)]


def ratios(seconds: dict[str, list[float]]) -> list[str]:
    """Of each way, the median over rounds of its time as a multiple of exact's in the same round, and the range."""
    cells = []
    for times in seconds.values():
        ratio = sorted(own / exact for own, exact in zip(times, seconds["exact"], strict=True))
        cells.append(f"{statistics.median(ratio):.2f} ({ratio[0]:.2f}-{ratio[-1]:.2f})")
    return cells


HEADERS = ("row", "saved [MiB]", "less", "outside attention [MiB]", "less", "peak [MiB]", "less")


def by_operator(reports: dict[str, MemoryReport]) -> tuple[list[str], list[list[str]]]:
    """A table with an operator a line and a row of ``reports`` a column, in MiB."""
    sums = {name: report.by_operator() for name, report in reports.items()}
    largest = {operator: max(s.get(operator, 0) for s in sums.values()) for s in sums.values() for operator in s}
    lines = [
        [operator, *(f"{s[operator] / _MIB:.1f}" if operator in s else "-" for s in sums.values())]
        for operator in sorted(largest, key=lambda operator: -largest[operator])
        if largest[operator] >= 0.001 * max(report.saved_bytes for report in reports.values())
    ]
    return ["operator [MiB]", *sums], lines


def draw(reports: dict[str, MemoryReport], path: Path) -> None:
    """A stacked bar a row, coloured by operator."""
    from matplotlib.figure import Figure

    sums = {name: report.by_operator() for name, report in reports.items()}
    operators = sorted({o for s in sums.values() for o in s}, key=lambda o: -max(s.get(o, 0) for s in sums.values()))
    figure = Figure(figsize=(9, 0.6 * len(sums) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(sums)
    for number, operator in enumerate(operators):
        widths = [s.get(operator, 0) / _MIB for s in sums.values()]
        if max(widths) < 0.005 * max(sum(s.values()) for s in sums.values()) / _MIB:
            continue
        axes.barh(list(sums), widths, left=left, label=operator, color=f"C{number % 10}")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("saved for backward [MiB]")
    axes.legend(fontsize="small", frameon=False)
    write_figure(figure, path)


def _less(value: int, base: int) -> str:
    return f"{100 * (1 - value / base):.1f} %"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and write them where ``--out`` says.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--batch", type=int, default=Shape.batch, help="sequences")
    parser.add_argument("--length", type=int, default=Shape.length, help="tokens a sequence")
    parser.add_argument("--layers", type=int, default=Shape.layers, help="transformer blocks")
    parser.add_argument("--rate", type=float, default=0.1, help="fraction of rows kept")
    parser.add_argument("--codec", default="int8", help="how the low-bit row stores its sketches")
    parser.add_argument("--norm-codec", default="int2", help="how LayerNorm's input is stored")
    parser.add_argument("--act-codec", default="int4", help="how GELU's derivative is stored")
    parser.add_argument(
        "--attention-dropout", type=float, default=0.0, help="above 0, PyTorch has no fused kernel on CPU"
    )
    parser.add_argument("--autocast", choices=("off", "bf16", "fp16"), default="off", help="mixed precision")
    parser.add_argument("--rounds", type=int, default=0, help="also time so many rounds of all rows, one step a row")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: PyTorch's default")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", help="folder for tables, ledgers and the picture")
    parser.add_argument("--smoke", action="store_true", help="a tiny model")
    arguments = parser.parse_args(argv)
    try:
        require("transformers")
        tabulate = require("tabulate").tabulate
        device = environment.resolve_device(arguments.device)
        settings = {name: getattr(arguments, name) for name in ("rate", "norm_codec", "act_codec")}
        table_rows = rows(RMMConfig(**settings), RMMConfig(**settings, codec=arguments.codec))
    except (BenchmarkError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = {"batch": arguments.batch, "length": arguments.length, "layers": arguments.layers}
    if arguments.smoke:
        sizes = {"batch": 4, "length": 32, "layers": 2, "width": 64, "heads": 4, "vocabulary": 500}
    shape = Shape(**sizes, attention_dropout=arguments.attention_dropout)
    autocast = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.autocast]

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    reports: dict[str, MemoryReport] = {}
    ways = {}
    for row in tqdm(table_rows, unit="row", disable=None):
        step, tokens, labels = make(row, shape, device, autocast)
        reports[row.name] = memory_report(step, tokens, labels, loss_fn=lambda loss: loss)
        if arguments.rounds:
            step.zero_grad()
            ways[row.name] = step, tokens, labels
    exact = reports["exact"]
    headings, body = list(HEADERS), [summary(name, report, exact) for name, report in reports.items()]
    seconds = time_steps(ways, arguments.rounds)
    if arguments.rounds:
        headings.append("time / exact")
        body = [[*cells, ratio] for cells, ratio in zip(body, ratios(seconds), strict=True)]
    headers, lines = by_operator(reports)
    notes = [
        "Saved: bytes of all storages that autograd keeps for backward, parameters and inputs left out. Peak: what the "
        "allocator gave out in one forward and backward pass, above the start, gradients included.",
        f"{environment.describe(device)['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}.",
    ]
    if arguments.rounds:
        notes.insert(1, "Time: forward and backward, median over rounds of the ratio within a round, and the range.")
    text = "\n\n".join(
        [
            f"RoBERTa, {shape.layers} blocks of {shape.width}, {shape.batch} sequences of {shape.length} tokens, "
            f"autocast {arguments.autocast}, attention dropout {shape.attention_dropout:g}",
            tabulate(body, headings, tablefmt="github", disable_numparse=True),
            tabulate(lines, headers, tablefmt="github", disable_numparse=True),
            " ".join(notes),
        ]
    )
    print(text)
    if arguments.out is not None:
        folder = Path(arguments.out)
        write_text(folder / "transformer_memory.md", text + "\n")
        record: dict[str, Any] = {"shape": asdict(shape), "autocast": arguments.autocast, "settings": settings}
        record["rows"] = {name: report.to_dict() for name, report in reports.items()}
        record["seconds"] = seconds
        record["environment"] = environment.describe(device)
        write_text(folder / "transformer_memory.json", json.dumps(record, indent=1) + "\n")
        draw(reports, folder / "transformer_memory.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
