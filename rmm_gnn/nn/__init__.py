"""Layers that keep a sketch of their input: drop-ins for the layers of PyTorch and PyTorch Geometric."""

from rmm_gnn.nn.gcn2_conv import RMMGCN2Conv
from rmm_gnn.nn.linear import RMMLinear
from rmm_gnn.nn.torch_linear import RMMTorchLinear

__all__ = ["RMMGCN2Conv", "RMMLinear", "RMMTorchLinear"]
