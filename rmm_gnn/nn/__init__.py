"""Layers that keep little of their input: drop-ins for the layers of PyTorch and PyTorch Geometric."""

from rmm_gnn.nn.gcn2_conv import RMMGCN2Conv
from rmm_gnn.nn.lean import LeanDropout, LeanELU, LeanGELU, LeanLeakyReLU, LeanReLU, LeanReLUDropout, LeanSiLU
from rmm_gnn.nn.lean_norm import LeanBatchNorm1d, LeanBatchNorm2d, LeanBatchNorm3d, LeanLayerNorm, LeanRMSNorm
from rmm_gnn.nn.linear import RMMLinear
from rmm_gnn.nn.torch_linear import RMMTorchLinear

__all__ = [
    "LeanBatchNorm1d",
    "LeanBatchNorm2d",
    "LeanBatchNorm3d",
    "LeanDropout",
    "LeanELU",
    "LeanGELU",
    "LeanLayerNorm",
    "LeanLeakyReLU",
    "LeanReLU",
    "LeanReLUDropout",
    "LeanRMSNorm",
    "LeanSiLU",
    "RMMGCN2Conv",
    "RMMLinear",
    "RMMTorchLinear",
]
