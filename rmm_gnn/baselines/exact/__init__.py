"""EXACT: inputs of products projected along features and kept in few bits, activations as one-bit masks.

References:
    Z. Liu, K. Zhou, F. Yang, L. Li, R. Chen, X. Hu, *EXACT: Scalable Graph Neural Networks Training via Extreme
    Activation Compression*, ICLR 2022.
"""

from rmm_gnn.baselines.exact.activations import exact_elu, exact_leaky_relu, exact_relu
from rmm_gnn.baselines.exact.batch_norm import exact_batch_norm
from rmm_gnn.baselines.exact.config import ExactConfig
from rmm_gnn.baselines.exact.context import exact_activations
from rmm_gnn.baselines.exact.convert import convert_to_exact, revert_exact
from rmm_gnn.baselines.exact.dropout import exact_dropout
from rmm_gnn.baselines.exact.gcn2_conv import ExactGCN2Conv
from rmm_gnn.baselines.exact.layers import (
    ExactBatchNorm1d,
    ExactDropout,
    ExactELU,
    ExactLeakyReLU,
    ExactLinear,
    ExactPyGLinear,
    ExactReLU,
)
from rmm_gnn.baselines.exact.linear import exact_linear

__all__ = [
    "ExactBatchNorm1d",
    "ExactConfig",
    "ExactDropout",
    "ExactELU",
    "ExactGCN2Conv",
    "ExactLeakyReLU",
    "ExactLinear",
    "ExactPyGLinear",
    "ExactReLU",
    "convert_to_exact",
    "exact_activations",
    "exact_batch_norm",
    "exact_dropout",
    "exact_elu",
    "exact_leaky_relu",
    "exact_linear",
    "exact_relu",
    "revert_exact",
]
