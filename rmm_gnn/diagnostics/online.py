"""The noise of a weight gradient from sketches, where X itself cannot be held until its gradient is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmm_gnn.anchor import Anchor, code_noise, residual_tiles
from rmm_gnn.codecs import get_codec
from rmm_gnn.config import RMMConfig
from rmm_gnn.control_variates import column_means
from rmm_gnn.diagnostics.variance import NoiseParts, anchor_of
from rmm_gnn.sketches import CountSketch, Draw
from rmm_gnn.sketches.blocks import pair_share
from rmm_gnn.sketches.moments import Moments, squared_norms, tiles

_FAMILY = CountSketch()


def estimate_moments(
    x_sketch: Tensor,  # [k, N]
    grad_sketch: Tensor,  # [k, M]
    num_rows: int,
    *,
    a: Tensor | None = None,
    d: Tensor | None = None,
) -> Moments:
    r"""Estimate a, c and d of X [B, N] and Y [B, M] without bias from count sketches of both, under one S.

    With p the probability that two rows share a bucket, and x~_r, y~_r the rows of the sketches,

    .. math::
        E \sum_r |\tilde x_r|^2 |\tilde y_r|^2 &= d + p (a - d) + 2 p (c - d) \\
        E \, |\tilde X^T \tilde Y|^2 &= c + p (a + c - 2 d) \\
        E \, |\tilde X|^2 |\tilde Y|^2 &= a + 2 p (c - d)

    which is solved for a, c, d.  Given the norms of the rows, a and d are known, and the second line gives c.  The
    estimate of d is noisy, by about B / k^1.5 of it; that of the sketch's own variance p (a + c - 2 d) is not.

    Args:
        x_sketch: S^T X, S of ``CountSketch``.
        grad_sketch: S^T Y under the same seed.
        num_rows: B.
        a: ``|X|^2 |Y|^2`` where it is known; goes with ``d``.
        d: ``sum_i |x_i|^2 |y_i|^2`` where it is known.

    Returns:
        The estimates, float64 scalars; they can be negative.

    Raises:
        ValueError: If only one of ``a`` and ``d`` is given.

    References:
        Derived here from E over the signs; tests hold it against the exact moments.
    """
    if (a is None) != (d is None):
        raise ValueError("'a' must be given together with 'd' (got one of them). Give both or none.")
    p = pair_share(num_rows, x_sketch.shape[0])
    product = (x_sketch.T.double() @ grad_sketch.double()).square().sum()
    if a is not None and d is not None:
        return Moments(a, (product - p * (a - 2.0 * d)) / (1.0 + p), d)
    x_norms, y_norms = squared_norms(x_sketch), squared_norms(grad_sketch)
    observed = torch.stack([x_norms.dot(y_norms), product, x_norms.sum() * y_norms.sum()])
    system = observed.new_tensor([[p, 2 * p, 1 - 3 * p], [p, 1 + p, -2 * p], [1, 2 * p, -2 * p]])
    return Moments(*torch.linalg.solve(system, observed))


@dataclass(frozen=True, eq=False)
class OnlineSketch:
    """What is held of X [B, N] from forward to backward: a count sketch and, for every row, one or two norms.

    k N + N + 2 B numbers in place of B N; with an anchor, a second sketch in place of the means, and with a coded one
    another B.  Make one with ``OnlineSketch.of``.
    """

    config: RMMConfig
    seed: Tensor
    x_sketch: Tensor
    mean: Tensor | None
    residual: Tensor | None
    squares: Tensor
    kept_squares: Tensor
    code_noise: Tensor | None

    @classmethod
    def of(cls, x: Tensor, config: RMMConfig, seed: Tensor, anchor: Tensor | None = None) -> OnlineSketch:
        """Sketch ``x`` [B, N] to as many rows as ``config`` keeps, and what is left of it where it is anchored.

        Raises:
            ValueError: If the variance of the config's family needs more than a, c and d.
        """
        if not config.family.variance_follows_from_moments:
            raise ValueError(
                f"'config' must have a family whose variance follows from a, c, d (got {config.family.name!r}). "
                "Measure exactly, or choose another family."
            )
        size = config.sketch_size(x.shape[0])
        x_sketch = _FAMILY.apply(x, seed, size, workspace_bytes=config.workspace_bytes)
        squares = torch.cat([squared_norms(tile) for _, tile in tiles(x)])
        if anchor is not None:
            fitted = anchor_of(x, anchor, config)
            kept = torch.cat([squared_norms(tile) for _, tile in residual_tiles(x, fitted)])
            left = _residual_sketch(x_sketch, fitted, config, seed)
            coded = get_codec(config.x0_codec).rounds_at_random
            noise = code_noise(anchor, fitted.coefficients, str(config.x0_codec)) if coded else None
            return cls(config, seed, x_sketch, None, left, squares, kept, noise)
        mean = column_means(x, config.workspace_bytes) if config.center else None
        kept = squares if mean is None else torch.cat([squared_norms(tile) for _, tile in tiles(x, mean)])
        return cls(config, seed, x_sketch, mean, None, squares, kept, None)

    def measure(self, grad_output: Tensor) -> tuple[Moments, NoiseParts]:
        """Estimate the moments of X and Y, and the variance of the gradient's estimate, without bias.

        The rounding of a stochastic codec is that of the count sketch's rows, whatever the config's family.

        Args:
            grad_output: Y [B, M].
        """
        num_rows, size = grad_output.shape[0], self.x_sketch.shape[0]
        y_sketch = _FAMILY.apply(grad_output, self.seed, size, workspace_bytes=self.config.workspace_bytes)
        y_squares = torch.cat([squared_norms(tile) for _, tile in tiles(grad_output)])

        def moments_of(x_sketch: Tensor, squares: Tensor) -> Moments:
            a, d = squares.sum() * y_squares.sum(), squares.dot(y_squares)
            return estimate_moments(x_sketch, y_sketch, num_rows, a=a, d=d)

        whole = moments_of(self.x_sketch, self.squares)
        kept, sketched = whole, self.x_sketch
        if self.residual is not None:
            sketched = self.residual
        elif self.mean is not None:
            sketched = _less_mean(self.x_sketch, self.mean, num_rows, self.config, self.seed)
        if sketched is not self.x_sketch:
            kept = moments_of(sketched, self.kept_squares)
        variance = self.config.family.variance_of_moments(kept, num_rows, size)
        assert variance is not None  # as ``of`` has checked
        codec = get_codec(self.config.codec)
        rounding = torch.zeros_like(variance)
        if codec.rounds_at_random:
            rounding = codec.variance(sketched).sum(1, dtype=torch.float64).dot(squared_norms(y_sketch))
        if self.code_noise is not None:
            rounding = rounding + self.code_noise.dot(y_squares)
        return whole, NoiseParts(variance, rounding)


def _less_mean(sketch: Tensor, mean: Tensor, num_rows: int, config: RMMConfig, seed: Tensor) -> Tensor:
    draw = Draw(seed, sketch.shape[0], workspace_bytes=config.workspace_bytes)
    return torch.addr(sketch, _FAMILY.sketch_ones(num_rows, draw, mean.dtype), mean, alpha=-1.0)


def _residual_sketch(x_sketch: Tensor, fitted: Anchor, config: RMMConfig, seed: Tensor) -> Tensor:
    x_0_sketch = _FAMILY.apply(fitted.x_0, seed, x_sketch.shape[0], workspace_bytes=config.workspace_bytes)
    sketch = torch.addmm(x_sketch, x_0_sketch, fitted.coefficients, alpha=-1.0)
    return sketch if fitted.mean is None else _less_mean(sketch, fitted.mean, fitted.x_0.shape[0], config, seed)
