"""Clusters of a graph by METIS, without a compiled extension of PyG."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.index import index2ptr
from torch_geometric.loader import ClusterData
from torch_geometric.utils import sort_edge_index

from benchmarks.harness.errors import require


class Clusters(ClusterData):
    """PyG's ``ClusterData`` with METIS from pymetis, whose wheels need no compiler.

    PyG calls the METIS of pyg-lib or of torch-sparse; built from source, torch-sparse has none.

    Args:
        data: The graph, undirected.
        num_parts: Clusters wanted; METIS may leave some of them empty, which are not counted.
    """

    def __init__(self, data: Data, num_parts: int) -> None:
        super().__init__(data, num_parts, log=False, keep_inter_cluster_edges=True)

    def _metis(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        row, col = sort_edge_index(edge_index, num_nodes=num_nodes)
        pymetis = require("pymetis", "cluster")
        graph = pymetis.CSRAdjacency(index2ptr(row, size=num_nodes).numpy(), col.numpy())
        # With a fixed seed all ranks get the same parts.
        _, parts = pymetis.part_graph(self.num_parts, graph, recursive=False, options=pymetis.Options(seed=0))
        _, numbers = np.unique(np.asarray(parts), return_inverse=True)
        self.num_parts = int(numbers.max()) + 1
        return torch.from_numpy(numbers.astype(np.int64))
