"""What a method keeps by construction, in bytes per node and layer: the measure in which methods are compared.

Counted is one block of GCN2 (convolution, BatchNorm, residual, ReLU, dropout) between the first and the last Linear, in
fp32, with the one-byte dropout mask of CUDA.  x_0, where a method keeps it once for all layers, is shared out among
them.  Not counted: adjacency and parameters, and what does not grow with the nodes (column means, seeds, statistics,
fits on x_0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FP32_BYTES = 4
EXACT_SCALE_BYTES = 8  # offset and step of a row, in fp32


@dataclass(frozen=True)
class Block:
    """The block whose bytes are counted.

    Attributes:
        channels: C.
        layers: Blocks that share x_0.
        shared_weights: Whether a convolution has one weight for both terms, and so no use for x_0 in backward, unless
            its sketch is anchored there.
        dropout: Whether dropout acts.
        mask_bytes: Bytes an entry of PyTorch's dropout mask takes: 1 on CUDA, 4 on CPU.
    """

    channels: int
    layers: int
    shared_weights: bool = False
    dropout: bool = True
    mask_bytes: int = 1

    @property
    def unit(self) -> int:
        """An activation in fp32, 4 C."""
        return FP32_BYTES * self.channels

    @property
    def dropout_mask(self) -> int:
        """PyTorch's dropout mask."""
        return self.mask_bytes * self.channels if self.dropout else 0

    @property
    def bit_mask(self) -> int:
        """One bit per entry."""
        return packed_bytes(self.channels, 1)


def packed_bytes(values: int, bits: int) -> int:
    """Bytes of so many codes, packed."""
    return -(-values * bits // 8)


def row_bytes(codec: str, channels: int) -> int:
    """Bytes of a row of ``channels`` fp32 values as the codec stores it, scale and offset included.

    Raises:
        ValueError: If the codec is unknown.
    """
    # Imported late: the command line is read before torch is.
    import torch

    from rmm_gnn.codecs import get_codec

    return get_codec(codec).num_bytes(1, channels, torch.float32)


def stock(block: Block) -> float:
    """PyG's layers: inputs of ``weight1`` and ``weight2``, of BatchNorm, output of ReLU, mask: 4352 at C = 256."""
    products = block.unit if block.shared_weights else 2 * block.unit
    return products + 2 * block.unit + block.dropout_mask


def rmm(block: Block, rate: float, codec: str, anchor: bool = False) -> float:
    """Randomised products only: a sketch of the input of ``weight1``, x_0 itself once; the rest is stock."""
    return _products(block, rate, codec, "fp32", anchor) + 2 * block.unit + block.dropout_mask


def rmm_lean(
    block: Block,
    rate: float,
    codec: str,
    norm_codec: str,
    x0_codec: str,
    norm_rate: float = 1.0,
    anchor: bool = False,
) -> float:
    """The whole model: also BatchNorm's input coded, one bit for ReLU; dropout's mask comes back from its seed."""
    norm = norm_rate * row_bytes(norm_codec, block.channels)
    return _products(block, rate, codec, x0_codec, anchor) + norm + block.bit_mask


def exact(block: Block, rate: float, bits: int) -> float:
    """EXACT: inputs of products projected to ``rate`` C features, all in ``bits`` bits; one-bit masks."""
    kept = math.ceil(rate * block.channels)
    product = packed_bytes(kept, bits) + EXACT_SCALE_BYTES
    products = product if block.shared_weights else 2 * product
    norm = packed_bytes(block.channels, bits) + EXACT_SCALE_BYTES
    return products + norm + block.bit_mask + (block.bit_mask if block.dropout else 0)


def checkpoint(block: Block) -> float:
    """Every block recomputed: its input, and x_0 once.  The block being recomputed comes on top, for that time."""
    return block.unit + block.unit / block.layers


def _products(block: Block, rate: float, codec: str, x0_codec: str, anchor: bool) -> float:
    x_0 = row_bytes(x0_codec, block.channels) / block.layers if anchor or not block.shared_weights else 0.0
    return rate * row_bytes(codec, block.channels) + x_0
