"""The configured families that the conformance suite runs every law on.  A family without a case fails a test."""

import importlib.util
import sys
from pathlib import Path

import torch

from rmm_gnn.sketches import (
    BlockRademacherSketch,
    CountSketch,
    GaussianSketch,
    ImportanceSamplingSketch,
    KroneckerSketch,
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
    "count_sketch-torch": CountSketch(),  # tests/conftest.py hides the compiled kernels from it
    "sors-hadamard": SORSSketch(),
    "sors-dct": SORSSketch(transform="dct"),
    "sors-dft": SORSSketch(transform="dft"),
    "row_sampling": RowSamplingSketch(),
    "row_sampling-replacement": RowSamplingSketch(replacement=True),
    "norm_sampling": NormSamplingSketch(),
    "importance_sampling": ImportanceSamplingSketch(),
    "importance_sampling-no_top": ImportanceSamplingSketch(top_share=0.0),
    "kronecker": KroneckerSketch(),
    "kronecker-6": KroneckerSketch(inner_rows=6),
    "kronecker-9-outer": KroneckerSketch(inner_rows=9, reduce="outer"),
    "kronecker-5-inner": KroneckerSketch(inner_rows=5, reduce="inner"),
}


def norms_for(family, num_rows):
    """Norms for the families that read them, spread over a factor of four, and None for the others."""
    if not family.reads_row_norms:
        return None
    return 0.5 + 1.5 * torch.rand(num_rows, generator=torch.Generator().manual_seed(num_rows))


def state_of(family, x, seed, sketch_size):
    return family.prepare(x, None, seed, sketch_size, 2**20, norms_for(family, x.shape[0]))


def add_cases_of(file):
    """Add what the file has in its ``CASES``, as ``given-<name>``; `--sketch-file` calls this."""
    name = Path(file).stem
    spec = importlib.util.spec_from_file_location(name, file)
    # Pickle looks classes up by the name of their module.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    CASES.update({f"given-{case}": family for case, family in module.CASES.items()})
