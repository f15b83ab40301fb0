"""The GCN2 network of the ogbn-arxiv protocol, from stock layers only, and its loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN2Conv

from benchmarks.harness.propagation import use_symmetric_product

LOSS_EPS = 1 - math.log(2)


class GCN2(nn.Module):
    r"""The published network for ogbn-arxiv.

    Linear, ReLU (= :math:`x_0`), L blocks of convolution, BatchNorm, residual, ReLU and dropout, then Linear.
    With 128 features, 16 layers of 256 and 40 classes it has 2,148,648 parameters.

    Set the attribute ``checkpoint`` to keep only the inputs of every block in training, and compute the block again in
    backward.  Outputs, gradients and running statistics stay what they are.

    Args:
        in_channels: Features per node.
        hidden_channels: Width of every block.
        out_channels: Classes.
        num_layers: L.
        alpha: Weight of :math:`x_0` in every convolution.
        theta: Strength of the identity mapping, ``beta_l = log(theta / l + 1)``; None means beta = 1.
        shared_weights: One weight for both terms of a convolution.
        dropout: Probability.
        bn_momentum: Weight of the newest batch in BatchNorm's running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 16,
        alpha: float = 0.5,
        theta: float | None = None,
        shared_weights: bool = False,
        dropout: float = 0.1,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.lin_in = nn.Linear(in_channels, hidden_channels)
        self.lin_out = nn.Linear(hidden_channels, out_channels)
        self.convs = nn.ModuleList(
            GCN2Conv(
                hidden_channels,
                alpha,
                theta=theta,
                layer=None if theta is None else layer,
                shared_weights=shared_weights,
                normalize=False,
            )
            for layer in range(1, num_layers + 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden_channels, momentum=bn_momentum) for _ in range(num_layers))
        self.dropout = dropout
        self.checkpoint = False
        use_symmetric_product(self)

    def forward(
        self,
        x: Tensor,  # [N, in_channels]
        adjacency: Tensor | Sequence[Tensor],  # [N, N], torch.sparse_csr, normalised; or one matrix a layer
    ) -> Tensor:  # [N, out_channels]
        """Class scores of every node, or of the rows of the last matrix.

        Args:
            x: Features.
            adjacency: One matrix for all layers, or one for each: the rows of layer l are then the first columns that
                the matrix of layer l + 1 has, so that a layer computes what the next one reads and no more.
        """
        x_0 = self.first(x)
        x = F.dropout(x_0, self.dropout, self.training)
        block = self._recomputed_block if self.checkpoint and self.training else self.block
        whole = isinstance(adjacency, Tensor)  # the convolutions take edges as well, whose list has another shape
        matrices = [adjacency] * len(self.convs) if whole else adjacency
        for layer, matrix in enumerate(matrices):
            # A slice of all rows would be another tensor, with nothing gained.
            own = x if whole or matrix.shape[0] == x.shape[0] else x[: matrix.shape[0]]
            x = block(layer, x, own, x_0, matrix)
        return self.lin_out(x)

    def first(self, x: Tensor) -> Tensor:  # [n, in_channels] -> [n, C]
        r""":math:`x_0`: dropout of the features, the first Linear and ReLU."""
        return self.lin_in(F.dropout(x, self.dropout, self.training)).relu()

    def block(
        self,
        layer: int,
        x: Tensor,  # [m, C]: the columns of the matrix
        own: Tensor,  # [n, C]: x of the rows
        x_0: Tensor,  # [n, C], or more, of which the first n are the rows'
        adjacency: Tensor,  # [n, m]
    ) -> Tensor:  # [n, C]
        """Convolution, BatchNorm, residual, ReLU and dropout of some rows."""
        x = (self.norms[layer](self.convs[layer](x, x_0, adjacency)) + own).relu()
        return F.dropout(x, self.dropout, self.training)

    def _recomputed_block(self, layer: int, x: Tensor, own: Tensor, x_0: Tensor, adjacency: Tensor) -> Tensor:
        def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
            return contextlib.nullcontext(), _frozen_statistics(self.norms[layer])

        return checkpoint(self.block, layer, x, own, x_0, adjacency, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _frozen_statistics(norm: nn.Module) -> Iterator[None]:
    """A second pass over the same batch must not count twice in the running statistics."""
    assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked is not None
    momentum, batches = norm.momentum, norm.num_batches_tracked.clone()
    norm.momentum = 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        norm.num_batches_tracked.copy_(batches)


def robust_loss(
    logits: Tensor,  # [n, classes]
    y: Tensor,  # [n]
) -> Tensor:
    r"""Mean of :math:`\log(\epsilon + \mathrm{CE}_i) - \log \epsilon` with :math:`\epsilon = 1 - \log 2`.

    It grows with the logarithm of the cross-entropy, so that mislabelled papers pull less.
    """
    return robust_losses(logits, y).mean()


def robust_losses(
    logits: Tensor,  # [n, classes]
    y: Tensor,  # [n]
) -> Tensor:  # [n]
    """The terms that `robust_loss` is the mean of."""
    cross_entropy = F.cross_entropy(logits, y, reduction="none")
    return (LOSS_EPS + cross_entropy).log() - math.log(LOSS_EPS)
