"""What a model costs and how noisy its gradients are: where memory goes, what a sketch adds."""

from rmm_gnn.diagnostics.memory import memory_report
from rmm_gnn.diagnostics.noise_record import NoiseRecord
from rmm_gnn.diagnostics.online import estimate_moments
from rmm_gnn.diagnostics.paper import paper_ratio_bound, paper_rmm_variance
from rmm_gnn.diagnostics.probe import GradientProbe
from rmm_gnn.diagnostics.report import MemoryReport, SavedEntry
from rmm_gnn.diagnostics.variance import (
    NoiseParts,
    alignment,
    noise_parts,
    rmm_variance,
    sgd_variance,
    variance_ratio,
)
from rmm_gnn.row_masks import check_row_masks

__all__ = [
    "GradientProbe",
    "MemoryReport",
    "NoiseParts",
    "NoiseRecord",
    "SavedEntry",
    "alignment",
    "check_row_masks",
    "estimate_moments",
    "memory_report",
    "noise_parts",
    "paper_ratio_bound",
    "paper_rmm_variance",
    "rmm_variance",
    "sgd_variance",
    "variance_ratio",
]
