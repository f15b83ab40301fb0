"""What a sketch is: a random matrix S with E[S S^T] = I that is never kept, only applied again from its seed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import tile
from rmm_gnn.sketches.moments import Moments, moments

DEFAULT_WORKSPACE_BYTES = 64 * 2**20

State = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Draw:
    """One S of a family, and how much room and which code its products may use.

    Attributes:
        seed: Scalar int64 tensor on the device of the matrices it is applied to.
        sketch_size: k, between 1 and B.
        state: What ``Sketch.prepare`` returned for this seed, for families that look at the data.
        workspace_bytes: Bound on transient memory besides the result.
        backend: Which implementation computes a product.
        rows: Numbers of the matrix's rows that S is applied to, in this order, so that B is how many they are [B]; None
            for all of them.
    """

    seed: Tensor
    sketch_size: int
    state: State = ()
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    backend: str = "auto"
    rows: Tensor | None = None


class Pass(NamedTuple):
    """What a family may give in one pass over a matrix M, all in the accumulation type.

    Attributes:
        sketch: S^T M [k, N].
        sums: Column sums of M, or of its selected rows [N].
        ones: S^T 1 [k].
    """

    sketch: Tensor
    sums: Tensor
    ones: Tensor


@dataclass(frozen=True)
class Sketch(ABC):
    """One family of random matrices S [B, k], k = ``sketch_size``; a configured, stateless, hashable value.

    S is a function of (seed, B, k) and, for a family that looks at the data, of the state that ``prepare`` returns.
    A new family needs ``to_dense`` only; it should give ``sketch_rows`` as well, since the one here builds S whole.
    """

    name: ClassVar[str]
    # False for families that look at a sample of the rows: what they skip could hide an inf or a nan.
    reads_every_row: ClassVar[bool] = True
    # True for families that make use of ``row_norms``: the norms of an earlier grad_output's rows.
    reads_row_norms: ClassVar[bool] = False
    # True for families whose ``prepare`` and ``sketch_rows`` select rows by themselves.  The others are given a copy.
    selects_rows: ClassVar[bool] = False
    # True for families that read the leading dimensions of x: S is made of parts for each.
    reads_shape: ClassVar[bool] = False
    # Backends besides plain torch that can compute this family.
    backends: ClassVar[tuple[str, ...]] = ()

    def for_shape(self, leading_shape: Sequence[int]) -> Sketch:
        """Return this family configured for an x with these dimensions before the last; itself unless it reads them."""
        return self

    def admissible_size(self, num_rows: int, size: int) -> int:
        """Return the largest k up to ``size`` that the family has an S [B, k] for; for most, ``size`` itself."""
        return size

    @abstractmethod
    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # [B, k]
        """Return S itself: the specification, ``apply(M) == to_dense().T @ M``.  For tests and small B."""

    def sketch_rows(
        self,
        matrix: Tensor,  # [B, N]
        draw: Draw,
        start: int,
        stop: int,
    ) -> Tensor:  # [stop - start, N]
        """Return rows [start, stop) of S^T ``matrix``, or of that of ``draw.rows``, in the accumulation type.

        Besides the result, an implementation allocates at most ``draw.workspace_bytes``.  This default is the slow,
        obvious one and does not: it builds S whole.
        """
        dtype = accumulation_dtype(matrix.dtype)
        if draw.rows is not None:
            matrix = tile(matrix, draw.rows, 0, draw.rows.shape[0])
        dense = self.to_dense(matrix.shape[0], draw.sketch_size, draw.seed, state=draw.state, dtype=dtype)
        return dense[:, start:stop].T @ matrix.to(dtype)

    def iter_blocks(
        self,
        matrix: Tensor,  # [B, N]
        draw: Draw,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield S^T ``matrix`` from top to bottom as ``(start, stop, block)``.

        Half of the workspace holds a block, the other half serves ``sketch_rows``.
        """
        row_bytes = max(1, matrix.shape[1] * accumulation_dtype(matrix.dtype).itemsize)
        height = max(1, draw.workspace_bytes // 2 // row_bytes)
        half = replace(draw, workspace_bytes=draw.workspace_bytes // 2)
        for start in range(0, draw.sketch_size, height):
            stop = min(start + height, draw.sketch_size)
            yield start, stop, self.sketch_rows(matrix, half, start, stop)

    def one_pass(self, matrix: Tensor, draw: Draw) -> Pass | None:
        """Return the whole sketch with what centring needs besides, where that is faster than one by one.

        The whole sketch is in memory then: the caller sees to it that the workspace holds it.
        """
        return None

    def encode_in_one_pass(self, matrix: Tensor, draw: Draw, payload: list[Tensor], bits: int) -> bool:
        """Write S^T ``matrix`` as codes of ``bits`` bits, one offset and step a row, and return True where that is one.

        Without centring nothing has to be known of the matrix before its sketch is coded.  ``payload`` is what a
        ``StochasticCodec`` allocates.  Where no kernel does both at once, nothing is written.
        """
        return False

    def apply(
        self,
        matrix: Tensor,  # [B, N]
        seed: Tensor,
        sketch_size: int,
        *,
        state: State = (),
        workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
        backend: str = "auto",
    ) -> Tensor:  # [k, N]
        """Return S^T ``matrix``: linear in ``matrix``, the same for the same (seed, B, k).

        Args:
            matrix: Any float matrix, also non-contiguous or expanded.
            seed: Scalar int64 tensor on ``matrix``'s device.
            sketch_size: k, between 1 and B.
            state: What ``prepare`` returned for this seed, for families that look at the data.
            workspace_bytes: Bound on transient memory besides the result.
            backend: Which implementation computes it.

        Returns:
            The sketch, in float64 for a float64 matrix and in float32 otherwise.
        """
        draw = Draw(seed, sketch_size, state, workspace_bytes, backend)
        blocks = [block for _, _, block in self.iter_blocks(matrix, draw)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def sketch_ones(self, num_rows: int, draw: Draw, dtype: torch.dtype) -> Tensor:  # [k]
        """Return S^T 1, by which centring corrects the sketch; a family may know a shorter way than its product."""
        ones = torch.ones((), dtype=dtype, device=draw.seed.device).expand(num_rows, 1)
        draw = replace(draw, rows=None)
        return torch.cat([block for _, _, block in self.iter_blocks(ones, draw)]).squeeze(1)

    def prepare(
        self,
        x: Tensor,  # [B, N]
        mean: Tensor | None,  # [N]
        seed: Tensor,
        sketch_size: int,
        workspace_bytes: int,
        row_norms: Tensor | None = None,  # [B]
        rows: Tensor | None = None,  # [B]
    ) -> State:
        """Return what S depends on besides the seed: tensors that are kept, and counted, until backward.

        ``rows`` are those of a larger x that S is to be applied to; only families that select rows are given them.
        """
        return ()

    def empty_state(self, num_rows: int, sketch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return uninitialised tensors shaped and typed as ``prepare`` would return them."""
        return ()

    @property
    def depends_on_data(self) -> bool:
        """Whether S depends on more than the seed, on the state that ``prepare`` makes of the data."""
        return type(self).empty_state is not Sketch.empty_state

    @property
    def variance_follows_from_moments(self) -> bool:
        """Whether ``variance_of_moments`` has a formula, which is where a, c, d and the sizes decide the variance."""
        return type(self).variance_of_moments is not Sketch.variance_of_moments

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor | None:
        """Return E|X^T S S^T Y - X^T Y|_F^2 where a, c, d and the sizes decide it; None where they do not.

        A family without such a formula gives ``variance``, or none.
        """
        return None

    def variance(
        self,
        x: Tensor,  # [B, N]
        grad_output: Tensor,  # [B, M]
        sketch_size: int,
        *,
        mean: Tensor | None = None,  # [N]
        row_norms: Tensor | None = None,  # [B]
    ) -> Tensor | None:
        """Return E|X^T S S^T Y - X^T Y|_F^2 in closed form (float64 scalar), or None where none is known.

        X is ``x``, or ``x`` less the row ``mean`` where it is given: what centring sketches.  ``row_norms`` are those
        that ``prepare`` is given, for families that read them.  Besides vectors of B numbers, a family allocates tiles
        of 16 MiB.
        """
        return self.variance_of_moments(moments(x, grad_output, mean), x.shape[0], sketch_size)

    @property
    def spec(self) -> str:
        """This family and its settings as a string that ``sketches.from_spec`` turns back into an equal object."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Return name and settings as plain values, for records."""
        return {"name": self.name, **asdict(self)}
