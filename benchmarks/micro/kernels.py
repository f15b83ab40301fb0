#!/usr/bin/env python3
"""Time of every kernel, and how near it comes to the speed at which the machine copies memory.

    python benchmarks/micro/kernels.py                               # 169343 x 256, the ogbn-arxiv layer
    python benchmarks/micro/kernels.py --shape 16384x768 --backend triton --device cuda

All run in one process and take turns round by round; the tests of what is timed run first. Bytes are those that have to
move at least once: a kernel's inputs and its outputs, each once. Bandwidth is these bytes over the median time; share
is that over the bandwidth of a copy of the input in the same round. Rows of torch's own functions are there to compare.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import guarded, parser_of
from benchmarks.micro import command, gate
from benchmarks.micro.timing import Spread, interleaved, ratios, spread
from rmm_gnn.autograd.dropout import apply_dropout
from rmm_gnn.codecs import get_codec
from rmm_gnn.control_variates import column_means
from rmm_gnn.kernels import check_backend, resolve
from rmm_gnn.permutation import permutation
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sketches import DEFAULT_WORKSPACE_BYTES, CountSketch

COPY = "copy"
TESTS = (
    "tests/kernels",
    "tests/codecs/test_conformance.py",
    "tests/functional/test_relu.py",
    "tests/functional/test_dropout.py",
    "tests/functional/test_batch_norm.py",
)
BITS = (8, 4, 2, 1)


class Kernel(NamedTuple):
    """What is timed.

    Attributes:
        run: Does it once.
        num_bytes: What it has to read and to write.
    """

    run: Callable[[], Any]
    num_bytes: int


def kernels(x: Tensor, rate: float, backend: str) -> dict[str, Kernel]:
    """Every kernel on the matrix ``x``, by name."""
    rows, columns = x.shape
    whole, bits = x.numel() * x.element_size(), x.numel() // 8
    seed, out, size = draw_seed(x), torch.empty_like(x), max(1, round(rate * rows))
    family = CountSketch()
    sketch_bytes = whole + size * columns * 4
    found = {
        COPY: Kernel(lambda: out.copy_(x), 2 * whole),
        "column means": Kernel(lambda: column_means(x, DEFAULT_WORKSPACE_BYTES), whole),
        "permutation": Kernel(lambda: permutation(seed, rows), 4 * rows),
        f"count_sketch {rate:g}": Kernel(lambda: family.apply(x, seed, size, backend=backend), sketch_bytes),
    }
    for number in BITS:
        codec = get_codec(f"int{number}")
        payload = codec.encode_matrix(x, seed)
        moved = whole + codec.num_bytes(rows, columns, x.dtype)
        found[f"encode int{number}"] = Kernel(
            lambda codec=codec, payload=payload: codec.encode(x, payload, 0, seed, backend=backend), moved
        )
        found[f"decode int{number}"] = Kernel(
            lambda codec=codec, payload=payload: codec.decode(payload, 0, rows, columns, x.dtype, backend=backend),
            moved,
        )
    own = torch.ops.rmm_gnn
    _, mask = own.relu(x, None, backend)
    norm = functools.partial(F.batch_norm, running_mean=None, running_var=None, training=True)
    normalised = own.batch_norm(x, None, None, None, None, 0.1, 1e-5, "int2", True, seed, 1.0, backend)[2]
    coded = codec_bytes(x, "int2")
    found |= {
        "relu, 1 bit": Kernel(lambda: own.relu(x, None, backend), 2 * whole + bits),
        "relu's backward": Kernel(lambda: own.masked_grad(x, mask, 1.0, 0.0, backend), 2 * whole + bits),
        "torch relu": Kernel(lambda: F.relu(x), 2 * whole),
        "dropout, no mask": Kernel(lambda: apply_dropout(x, 0.1, seed, backend), 2 * whole),
        "relu + dropout, 1 bit": Kernel(lambda: own.relu_dropout(x, 0.1, seed, backend), 2 * whole + bits),
        "torch dropout": Kernel(lambda: F.dropout(x, 0.1), 2 * whole),
        # Statistics, then output and code: the input is read twice.
        "batch norm, int2": Kernel(
            lambda: own.batch_norm(x, None, None, None, None, 0.1, 1e-5, "int2", True, seed, 1.0, backend),
            3 * whole + coded,
        ),
        "batch norm's backward": Kernel(
            lambda: own.batch_norm_backward(x, None, normalised, "int2", True, 1.0, None, backend),
            3 * whole + 2 * coded,
        ),
        "torch batch norm": Kernel(lambda: norm(x), 3 * whole),
    }
    return found


def codec_bytes(x: Tensor, codec: str) -> int:
    return get_codec(codec).num_bytes(x.shape[0], x.shape[1], x.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it as JSON where ``--out`` names a file.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--shape", nargs="+", default=["169343x256"], help="ROWSxCOLUMNS of matrices")
    parser.add_argument("--rate", type=float, default=0.1, help="share of rows that the sketch keeps")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the matrix")
    command.add_flags(parser)
    return guarded(lambda: _run(parser.parse_args(argv)), "interrupted")


def _run(given: argparse.Namespace) -> int:
    device = environment.resolve_device(given.device)
    shapes = [command.parse_shape(text, "ROWSxCOLUMNS") for text in given.shape]
    command.prepare(given)
    try:
        check_backend(given.backend)
        if given.backend == "triton" and device.type != "cuda":
            raise ValueError("'backend' triton needs a GPU: where kernels are interpreted, time means nothing.")
        small = torch.ones(64, 8, device=device, dtype=getattr(torch, given.dtype))
        for kernel in kernels(small, given.rate, given.backend).values():
            kernel.run()
    except (ImportError, ValueError) as error:
        raise BenchmarkError(str(error)) from error
    tabulate = require("tabulate").tabulate
    warning = gate.check(TESTS, given.no_gate, given.tested_in)
    where = environment.describe(device)
    records = []
    for shape in shapes:
        torch.manual_seed(0)
        x = torch.randn(*shape, device=device).to(getattr(torch, given.dtype))
        timed = kernels(x, given.rate, given.backend)
        seconds = interleaved({name: kernel.run for name, kernel in timed.items()}, given.repetitions, device)
        found = [
            {
                "shape": "x".join(map(str, shape)),
                "layer": name,
                "ratio": ratios(seconds[name], seconds[COPY])._asdict(),
                "seconds": seconds[name],
                "bytes": kernel.num_bytes,
            }
            for name, kernel in timed.items()
        ]
        records += found
        print(
            f"{shape[0]:,} x {shape[1]}, {given.dtype}, backend {resolve(given.backend, x)}; {where['device']}, "
            f"{where['threads']} threads, torch {where['packages']['torch']}; {given.repetitions} rounds\n"
        )
        if warning:
            print(f"{warning}\n")
        headers = ["kernel", "time / copy", "time [ms]", "bandwidth [GB/s]", "share of a copy's"]
        lines = [_row(record, found[0]["bytes"]) for record in found]
        print(tabulate(lines, headers, tablefmt="github", disable_numparse=True) + "\n")
    command.write(given, where, records)
    return 0


def _row(record: dict[str, Any], copied_bytes: int) -> list[str]:
    time_s, ratio = spread(record["seconds"]), Spread(**record["ratio"])
    return [
        record["layer"],
        ratio.format(2),
        time_s.format(2, 1e3),
        f"{record['bytes'] / time_s.median / 1e9:.1f}",
        f"{record['bytes'] / copied_bytes / ratio.median:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
