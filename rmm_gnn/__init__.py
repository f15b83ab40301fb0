"""Train large linear layers in a fraction of the memory: forward exact, backward from a random sketch of the input."""

from rmm_gnn.codecs import StochasticCodec
from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.convert import convert_to_rmm, revert_rmm
from rmm_gnn.diagnostics import GradientProbe, MemoryReport, memory_report
from rmm_gnn.functional import rmm_linear
from rmm_gnn.nn.training_state import load_training_state, training_state
from rmm_gnn.planning import NoiseController, NoiseLR, Plan, plan
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sketches import (
    BlockRademacherSketch,
    CountSketch,
    GaussianSketch,
    ImportanceSamplingSketch,
    KroneckerSketch,
    NormSamplingSketch,
    RademacherSketch,
    RowSamplingSketch,
    Sketch,
    SORSSketch,
)

__version__ = "0.1.0"

__all__ = [
    "BlockRademacherSketch",
    "CountSketch",
    "GaussianSketch",
    "GradientProbe",
    "ImportanceSamplingSketch",
    "KroneckerSketch",
    "MemoryReport",
    "NoiseController",
    "NoiseLR",
    "NormSamplingSketch",
    "Plan",
    "RMMConfig",
    "RademacherSketch",
    "RowSamplingSketch",
    "SORSSketch",
    "Sketch",
    "StochasticCodec",
    "compress_activations",
    "convert_to_rmm",
    "draw_seed",
    "load_training_state",
    "memory_report",
    "plan",
    "revert_rmm",
    "rmm_linear",
    "training_state",
]
