"""Functional form of the layers: torch's functions with a lean backward."""

from rmm_gnn.functional.activations import elu, gelu, leaky_relu, relu, silu
from rmm_gnn.functional.anchored import anchored_linear
from rmm_gnn.functional.dropout import dropout, relu_dropout
from rmm_gnn.functional.linear import addmm, rmm_linear
from rmm_gnn.functional.normalization import batch_norm, layer_norm, rms_norm
from rmm_gnn.functional.shared_input import shared_input_linear

__all__ = [
    "addmm",
    "anchored_linear",
    "batch_norm",
    "dropout",
    "elu",
    "gelu",
    "layer_norm",
    "leaky_relu",
    "relu",
    "relu_dropout",
    "rmm_linear",
    "rms_norm",
    "shared_input_linear",
    "silu",
]
