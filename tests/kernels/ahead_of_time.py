"""Compiles kernels to machine code of a GPU that need not be there, as they are launched there; a command.

    python -m tests.kernels.ahead_of_time 90 float32

Prints a line for every kernel: its name, and the bytes of its machine code. Run it without TRITON_INTERPRET.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rmm_gnn.codecs import get_codec
from rmm_gnn.kernels import (
    activations_triton,
    batch_norm_triton,
    codes_triton,
    count_sketch_triton,
    dense_triton,
    sketch_codes_triton,
)
from rmm_gnn.kernels.reference import accumulation_dtype

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
launched: list[str] = []


def compile_for(capability: int) -> None:
    """Have every launch compile its kernel, and not run it."""

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = {name: options.pop(name) for name in kernel.arg_names if name in options}
        arguments = inspect.signature(kernel.fn).bind(*args, **named).arguments
        signature, constants, hints = {}, {}, {}
        for place, parameter in enumerate(kernel.params):
            value = arguments[parameter.name]
            if isinstance(value, Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
                hints[place,] = [["tt.divisibility", 16]]
            elif parameter.annotation_type:
                signature[parameter.name] = parameter.annotation_type
            elif parameter.is_constexpr or value == 1:  # a launch specialises on 1 as well
                signature[parameter.name], constants[place,] = "constexpr", value
            else:
                signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
                if value % 16 == 0:
                    hints[place,] = [["tt.divisibility", 16]]
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        launched.append(kernel.__name__)
        if kernel.__name__ in (
            "_choose_scales",
            "_pack",
            "_sketch_and_encode",
        ):  # whose codes are those of torch, which rounds to nearest
            assert not {"div.full.f32", "div.approx.f32"} & set(compiled.asm["ptx"].split()), kernel.__name__
        print(kernel.__name__, len(compiled.asm["cubin"]))

    triton.runtime.JITFunction.run = run


def launch_all(dtype: torch.dtype) -> None:
    """Call everything that launches a kernel."""
    launchers = (activations_triton, batch_norm_triton, codes_triton, count_sketch_triton, dense_triton)
    for module in (*launchers, sketch_codes_triton):
        module.check_device = lambda kernel, tensor: None
    matrix, seed = torch.zeros(4096, 256, dtype=dtype), torch.tensor(0)
    rows = torch.arange(1000, dtype=torch.int32)
    count_sketch_triton.sketch(matrix, seed, 400, 0, 400, with_sums=True)
    count_sketch_triton.sketch(matrix, seed, 100, 0, 40, rows=rows)
    for entries in ("gaussian", "rademacher"):
        dense_triton.sketch(matrix, seed, 400, 0, 400, entries=entries)
    dense_triton.sketch(matrix, seed, 100, 0, 100, entries="rademacher", num_blocks=4, rows=rows)
    count_sketch_triton.sketch(matrix[:1], seed, 1, 0, 1)  # a launch takes numbers that are 1 for constants
    dense_triton.sketch(matrix[:1], seed, 1, 0, 1, entries="rademacher", num_blocks=1)
    for codec in map(get_codec, ("int2", "int8:group_size=64,scale=fp32")):
        payload = codec.empty(4096, 256, dtype, matrix.device)
        settings = {"bits": codec.bits, "group_size": codec.group_size}
        codes_triton.encode(matrix, *payload, seed, 0, **settings)
        codes_triton.decode(*payload, 256, dtype, **settings)
        for rows, columns in ((4096, 256), (1, 1)):
            x, payload = matrix[:rows, :columns], codec.empty(rows, columns, dtype, matrix.device)
            values = torch.zeros(columns, dtype=accumulation_dtype(dtype))
            batch_norm_triton.encode_normalized(x, values, values, *payload, seed, 0, **settings)
            batch_norm_triton.reduce(x, *payload, **settings)
            size, mean = min(rows, 400), values if rows > 1 else None
            sketched = [tensor[:size] for tensor in codec.empty(rows, columns, dtype, matrix.device)]
            if codec.group_size is None:
                sketch_codes_triton.sketch_and_encode(x, seed, size, 0, size, *sketched, bits=codec.bits, mean=mean)
            batch_norm_triton.grad_input(x, *payload, values, values, values, **settings)
    for values in (matrix, matrix.t(), matrix[:1, :1]):
        bits = activations_triton.relu(values, None)[1]
        activations_triton.relu(values, 0.01)
        activations_triton.dropout(values, 0.5, seed)
        activations_triton.relu_dropout(values, 0.1, seed)
        activations_triton.masked_grad(values, bits, 0.9, 0.0)
        activations_triton.masked_grad(values, bits, 1.0, 0.01)


if __name__ == "__main__":
    compile_for(int(sys.argv[1]))
    launch_all(getattr(torch, sys.argv[2]))
    expected = {"_count_sketch", "_dense", "_choose_scales", "_pack", "_unpack"}
    expected |= {"_activate", "_mask_grad", "_reduce", "_grad_input", "_sketch_and_encode"}
    assert set(launched) == expected, launched
