"""A codec that the library does not have: every value becomes -m, 0 or m, with m the largest magnitude of its row.

Run: python docs/examples/ternary_codec.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn import RMMConfig
from rmm_gnn.codecs import CODECS, Codec
from rmm_gnn.codecs.bitpack import pack, packed_width, unpack
from rmm_gnn.nn import RMMTorchLinear
from rmm_gnn.seeding import Stream, uniform


@dataclass(frozen=True)
class TernaryCodec(Codec):
    r"""Keeps a sign or zero for every value, in 2 bits, and for every row its largest magnitude m, in float32.

    A value x is read back as sign(x) m with probability |x|/m and as 0 otherwise:

    .. math::
        E[\hat x] = x, \qquad \mathrm{Var}[\hat x] = |x| (m - |x|)

    Zeros are read back as zeros, which no offset between minimum and maximum grants.  A row with an inf or a nan is
    read back as infs and nans.
    """

    name: ClassVar[str] = "ternary"
    num_tensors: ClassVar[int] = 2
    rounds_at_random: ClassVar[bool] = True

    def empty(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        codes = torch.empty(num_rows, packed_width(num_columns, 2), dtype=torch.uint8, device=device)
        return [codes, torch.empty(num_rows, 1, dtype=torch.float32, device=device)]

    def encode(self, block: Tensor, payload: list[Tensor], start: int, seed: Tensor, *, backend: str = "auto") -> None:
        rows, columns = (torch.arange(count, device=block.device) for count in block.shape)
        # Row i of the block is row start + i of the matrix: randomness belongs to the place in the whole.  Sums of a
        # number a row and a number a column are uniform, and any two of them independent.
        noise = uniform(seed, Stream.ROUNDING, start + rows).unsqueeze(1)
        noise = noise.add(uniform(seed, Stream.ROUNDING_COLUMNS, columns)).frac_()
        largest = largest_of(block)
        share = block.double().abs().div_(largest.masked_fill(largest == 0, 1.0))
        codes = share.add_(noise).floor_().mul_(block.sign()).add_(1.0)
        part = slice(start, start + block.shape[0])
        pack(codes.to(torch.uint8).bitwise_and_(3), payload[0][part], 2)
        payload[1][part] = largest

    def decode(
        self,
        payload: list[Tensor],
        start: int,
        stop: int,
        num_columns: int,
        dtype: torch.dtype,
        *,
        backend: str = "auto",
    ) -> Tensor:
        codes = unpack(payload[0][start:stop], num_columns, 2, torch.float32)
        return codes.sub_(1.0).mul_(payload[1][start:stop]).to(dtype)

    def variance(self, matrix: Tensor) -> Tensor:
        return matrix.abs() * (largest_of(matrix) - matrix.abs())


def largest_of(matrix: Tensor) -> Tensor:
    """Return m for every row [B, 1], as it is stored."""
    if matrix.shape[1] == 0:
        return matrix.new_zeros(matrix.shape[0], 1, dtype=torch.float32)
    largest = matrix.abs().amax(1, keepdim=True)
    nearest = largest.float()
    # Rounded down from float64 it would be below a value, whose share would exceed 1.
    return torch.where(nearest < largest, nearest.nextafter(torch.full_like(nearest, torch.inf)), nearest)


CODECS[TernaryCodec.name] = TernaryCodec


def main() -> None:
    torch.manual_seed(0)
    matrix, codec = torch.randn(100, 50), TernaryCodec()
    read = []
    for number in range(500):
        payload = codec.encode_matrix(matrix, torch.tensor(number))
        read.append(codec.decode(payload, 0, 100, 50, torch.float32))
    found, closed = torch.stack(read), codec.variance(matrix)
    print(f"mean error {float((found.mean(0) - matrix).mean()):.4f}")
    print(f"variance {float(found.var(0).mean()):.4f}, closed form {float(closed.mean()):.4f}")
    print(f"bytes a row of 50: {codec.num_bytes(1, 50, torch.float32)}")

    layer = RMMTorchLinear(8, 4, config=RMMConfig(rate=0.5, codec="ternary"))
    layer(torch.randn(200, 8)).square().mean().backward()
    print(layer, "has a weight gradient of norm", round(float(layer.weight.grad.norm()), 2))


if __name__ == "__main__":
    main()
