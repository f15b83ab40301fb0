"""Storage in 8, 4, 2 or 1 bits a value, rounded at random so that what is read back is right on average."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmm_gnn._validation import check_choice, check_positive_int
from rmm_gnn.codecs.base import Codec
from rmm_gnn.codecs.bitpack import pack, packed_width, unpack
from rmm_gnn.codecs.norm_coding import NormCoding
from rmm_gnn.kernels import implementation
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.seeding import Stream, hash_index

SCALE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Entries coded at a time: on the CPU few enough to stay in cache, enough to keep two threads busy; elsewhere as many as
# keep temporary copies within tens of MiB, since every operation is a launch.
_TILE, _TILE_ELSEWHERE = 1 << 17, 1 << 21


@dataclass(frozen=True)
class StochasticCodec(Codec):
    r"""Keeps integer codes of ``bits`` bits, and for every row, or group of columns in a row, an offset and a step.

    .. math::
        q = \lfloor (x - o) / s + u \rfloor \in \{0, \dots, 2^b - 1\}, \qquad \hat x = o + s q, \qquad
        E[\hat x] = x, \qquad \mathrm{Var}[\hat x] = s^2 f (1 - f)

    with u uniform on [0, 1) and f the fractional part of (x - o)/s.

    *Rounding of offset and step.*  The offset is the group's minimum rounded *down* to bfloat16, the step is
    (max - o)/(2^b - 1) rounded *up*.  Encoding and decoding use the rounded numbers, and every value lies within the
    range they span, so nothing is clamped and the rounding of o and s costs a slightly wider step, never a bias.
    Where a row's range is small beside its magnitude the step widens to about ``2^-7 |min| / (2^b - 1)``:
    ``scale="fp32"`` serves such data.

    *Randomness.*  :math:`u_{ij} = \mathrm{frac}(r_i + c_j)` with r and c hashed from the seed's rounding streams: B + N
    hashes for a matrix, not B N.  Each entry is uniform, any two entries are independent (r_i cancels in no pair), and
    given c the rows are independent.  Bias and variance of whatever is linear in the matrix, such as a weight gradient,
    are therefore those of fully independent rounding.

    A group with an inf or nan, or whose range overflows in the type of the scale, is read back as nan.  A constant
    group is read back exactly where bfloat16 holds its value.

    Args:
        bits: 1, 2, 4 or 8.
        group_size: Columns that share an offset and a step; None for a whole row.  The last group may be smaller.
        scale: How offset and step are kept: "bf16" or "fp32".

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a value is of the wrong type.

    Example:
        >>> codec = StochasticCodec(bits=2)
        >>> codec.name, codec.num_bytes(1000, 256, torch.float32)  # 1000 (256 / 4 + 2 + 2)
        ('int2', 68000)
    """

    bits: int
    group_size: int | None = None
    scale: str = "bf16"
    name: str = field(init=False)  # type: ignore[misc]
    num_tensors = 2
    rounds_at_random = True

    def __post_init__(self) -> None:
        if check_positive_int("bits", self.bits) not in (1, 2, 4, 8):
            raise ValueError(f"'bits' must be 1, 2, 4 or 8 (got {self.bits}). Codes have to fill bytes.")
        object.__setattr__(self, "group_size", check_positive_int("group_size", self.group_size, optional=True))
        check_choice("scale", self.scale, SCALE_DTYPES)
        object.__setattr__(self, "name", f"int{self.bits}")

    @property
    def spec(self) -> str:
        settings = [] if self.group_size is None else [f"group_size={self.group_size}"]
        settings += [] if self.scale == "bf16" else [f"scale={self.scale}"]
        return self.name + (":" + ",".join(settings) if settings else "")

    @property
    def levels(self) -> int:
        """The largest code, 2^bits - 1."""
        return 2**self.bits - 1

    def empty(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        codes = torch.empty(num_rows, packed_width(num_columns, self.bits), dtype=torch.uint8, device=device)
        groups = self._num_groups(num_columns)
        # Offsets, then steps.
        return [codes, torch.empty(num_rows, 2 * groups, dtype=SCALE_DTYPES[self.scale], device=device)]

    def num_bytes(self, num_rows: int, num_columns: int, dtype: torch.dtype) -> int:
        """B (ceil(N bits / 8) + 2 ceil(N / group_size) bytes(scale)), whatever the type of the values."""
        return super().num_bytes(num_rows, num_columns, dtype)

    def encode(self, block: Tensor, payload: list[Tensor], start: int, seed: Tensor, *, backend: str = "auto") -> None:
        kernels = implementation("codes", backend, block)
        if kernels is not None:
            codes, scales = (tensor[start : start + block.shape[0]] for tensor in payload)
            kernels.encode(block, codes, scales, seed, start, bits=self.bits, group_size=self.group_size)
            return
        num_rows, num_columns = block.shape
        if block.numel() == 0:
            return
        dtype = accumulation_dtype(block.dtype)
        columns = _uniforms(seed, Stream.ROUNDING_COLUMNS, 0, num_columns).to(dtype)
        height = max(1, (_TILE if block.device.type == "cpu" else _TILE_ELSEWHERE) // num_columns)
        for row in range(0, num_rows, height):
            tile = block[row : row + height].to(dtype)
            first, last = start + row, start + row + tile.shape[0]
            rows = _uniforms(seed, Stream.ROUNDING, first, last).to(dtype)
            noise = torch.add(rows.unsqueeze(1), columns).frac_()
            scales = payload[1][first:last]
            pack(self._codes(tile, noise, scales), payload[0][first:last], self.bits)

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
        kernels = implementation("codes", backend, payload[0], dtype)
        if kernels is not None:
            codes, scales = (tensor[start:stop] for tensor in payload)
            return kernels.decode(codes, scales, num_columns, dtype, bits=self.bits, group_size=self.group_size)
        compute = accumulation_dtype(dtype)
        values = unpack(payload[0][start:stop], num_columns, self.bits, compute)
        scales = payload[1][start:stop].to(compute)
        for part, offset, step in self._groups(values, scales=scales):
            part.mul_(step).add_(offset)
        return values.to(dtype)

    @property
    def bits_of_rows(self) -> int | None:
        return self.bits if self.group_size is None else None

    def norm_coding(self, matrix: Tensor, backend: str = "auto") -> NormCoding | None:
        kernels = implementation("batch_norm", backend, matrix)
        return None if kernels is None else NormCoding(kernels, self.bits, self.group_size)

    def variance(self, matrix: Tensor) -> Tensor:  # [B, N] -> [B, N]
        """Return the variance s^2 f (1 - f) of every entry as read back, for a given matrix."""
        matrix = matrix.to(accumulation_dtype(matrix.dtype))
        scales = self.empty(matrix.shape[0], matrix.shape[1], matrix.dtype, matrix.device)[1]
        result = torch.empty_like(matrix)
        for part, out, offset, step in self._groups(matrix, result, scales=scales):
            self._set_scales(part, offset, step)
            share = self._steps_above(part, offset, step).frac_()
            out.copy_(share.mul_(1 - share).mul_(step.to(share.dtype).square()))
        return result

    def _codes(self, tile: Tensor, noise: Tensor, scales: Tensor) -> Tensor:
        """Choose offset and step of every group of ``tile``, write them to ``scales``, return the codes."""
        codes = torch.empty(tile.shape, dtype=torch.uint8, device=tile.device)
        for part, uniform, out, offset, step in self._groups(tile, noise, codes, scales=scales):
            self._set_scales(part, offset, step)
            # The sum can round up to the next whole number, one code too high.
            out.copy_(self._steps_above(part, offset, step).add_(uniform).clamp_(max=self.levels))
        # nan has no code; what the conversion made of it must not reach the bits of a neighbour.
        return codes.bitwise_and_(self.levels)

    def _set_scales(self, part: Tensor, offset: Tensor, step: Tensor) -> None:
        low, high = torch.aminmax(part, dim=-1, keepdim=True)
        low.masked_fill_(~(high - low).isfinite(), torch.nan)
        offset.copy_(_round_directed(low, offset.dtype, -torch.inf))
        # By a tensor: CUDA multiplies by the reciprocal of a number, which may be off in the last place.
        levels = high.new_full((), self.levels)
        step.copy_(_round_directed((high - offset).div_(levels), step.dtype, torch.inf))

    @staticmethod
    def _steps_above(part: Tensor, offset: Tensor, step: Tensor) -> Tensor:
        step = step.to(part.dtype)
        return (part - offset.to(part.dtype)).div_(step.masked_fill(step == 0, 1.0))

    def _num_groups(self, num_columns: int) -> int:
        return 1 if self.group_size is None else (num_columns + self.group_size - 1) // self.group_size

    def _groups(self, *matrices: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield views [rows, groups, columns of a group] of the matrices, then of their offsets and steps.

        Two turns at most: the full groups, and a smaller last one.
        """
        num_columns, groups = matrices[0].shape[1], scales.shape[1] // 2
        size = num_columns if self.group_size is None else self.group_size
        full = num_columns // size if num_columns else 0
        offsets, steps = scales[:, :groups].unsqueeze(-1), scales[:, groups:].unsqueeze(-1)
        if full:
            views = [matrix[:, : full * size].unflatten(1, (full, size)) for matrix in matrices]
            yield (*views, offsets[:, :full], steps[:, :full])
        if num_columns > full * size:
            views = [matrix[:, full * size :].unsqueeze(1) for matrix in matrices]
            yield (*views, offsets[:, full:], steps[:, full:])


def _uniforms(seed: Tensor, stream: int, start: int, stop: int) -> Tensor:
    """Uniform numbers on the grid of 2^-24 in [0, 1), float32, for the indices [start, stop)."""
    words = hash_index(seed, stream, torch.arange(start, stop, device=seed.device))
    return (words >> 8).to(torch.float32).mul_(2.0**-24)


def _round_directed(values: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """Round to ``dtype`` towards minus or plus infinity."""
    nearest = values.to(dtype)
    wrong = nearest.to(values.dtype) > values if towards < 0 else nearest.to(values.dtype) < values
    return torch.where(wrong, torch.nextafter(nearest, torch.full_like(nearest, towards)), nearest)
