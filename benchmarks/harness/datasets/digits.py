"""scikit-learn's handwritten digits as a graph: real data that comes with the library."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import require
from benchmarks.harness.propagation import normalized_adjacency

NUM_NEIGHBORS = 10


def load_digits_graph() -> NodeDataset:
    """1797 images of 8 x 8 pixels, each joined to its 10 nearest neighbours, edges made symmetric.

    Pixels are scaled to [0, 1].  There is no published split: every seed draws its own, 10 % for training, 40 % for
    validation (with fewer, chance decides which epoch is reported) and 50 % for testing.

    Returns:
        The data set.

    Raises:
        BenchmarkError: When scikit-learn is not installed.
    """
    x, y = require("sklearn.datasets").load_digits(return_X_y=True)
    neighbors = require("sklearn.neighbors").kneighbors_graph(x, NUM_NEIGHBORS, include_self=False).tocoo()
    edges = torch.from_numpy(np.stack([neighbors.row, neighbors.col]).astype(np.int64))
    return NodeDataset(
        name="digits",
        title="digits, 10-nearest-neighbour graph",
        x=torch.from_numpy((x / 16).astype(np.float32)),
        y=torch.from_numpy(y.astype(np.int64)),
        adjacency=normalized_adjacency(edges, len(x)),
        num_classes=10,
        random_percent=(10, 40),
    )
