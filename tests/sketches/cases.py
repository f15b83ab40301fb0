"""The configured families that the conformance suite runs every law on.  A family without a case fails a test."""

from rmm_gnn.sketches import (
    BlockRademacherSketch,
    CountSketch,
    GaussianSketch,
    NormSamplingSketch,
    RademacherSketch,
    RowSamplingSketch,
    SORSSketch,
)

CASES = {
    "gaussian": GaussianSketch(),
    "rademacher": RademacherSketch(),
    "block_rademacher": BlockRademacherSketch(),
    "block_rademacher-7": BlockRademacherSketch(block_rows=7),
    "count_sketch": CountSketch(),
    "sors-hadamard": SORSSketch(),
    "sors-dct": SORSSketch(transform="dct"),
    "sors-dft": SORSSketch(transform="dft"),
    "row_sampling": RowSamplingSketch(),
    "row_sampling-replacement": RowSamplingSketch(replacement=True),
    "norm_sampling": NormSamplingSketch(),
}
