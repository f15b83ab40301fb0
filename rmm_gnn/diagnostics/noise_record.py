"""What is known of the noise of one layer's weight gradient at one step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseRecord:
    """The noise of one layer's weight gradient at one step; variances are squared Frobenius norms.

    Attributes:
        step: Number of the training forward pass, from 0.
        layer: Qualified name of the weight.
        num_rows: B.
        sketch_size: k.
        kept: What is kept of X: "sketch"; "code", all of it in a codec; "whole", X as it is, where the variances are
            those that a sketch would bring; or "held", X by the caller in any case.
        gradient_square: ``|X^T Y|^2``, the signal.
        sgd_variance: From the choice of samples (9); nan for a single row.
        sketch_variance: From S.
        rounding_variance: From the codecs.
        paper_rmm_variance: The paper's formula (11), which is wrong, for comparison.
        alignment: alpha (13).
        ratio_bound: The paper's bound (12) on the ratio, which does not hold, for comparison.
    """

    step: int
    layer: str
    num_rows: int
    sketch_size: int
    kept: str
    gradient_square: float
    sgd_variance: float
    sketch_variance: float
    rounding_variance: float
    paper_rmm_variance: float
    alignment: float
    ratio_bound: float

    @property
    def rmm_variance(self) -> float:
        """What is added to the gradient by the way its input is kept."""
        return self.sketch_variance + self.rounding_variance

    @property
    def variance_ratio(self) -> float:
        """D2_RMM / D2_SGD."""
        return self.rmm_variance / self.sgd_variance if self.sgd_variance else float("inf")

    @property
    def relative_noise(self) -> float:
        """Noise to signal, D2_RMM over the square of the gradient."""
        return self.rmm_variance / self.gradient_square if self.gradient_square else float("inf")
