"""Sees every product with a trained weight in a forward pass, in layers of any kind, and its gradient in backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

import rmm_gnn.functional as lean
from rmm_gnn.config import RMMConfig
from rmm_gnn.row_masks import count_rows
from rmm_gnn.sharing import config_of, is_of_held, row_mask_of


@dataclass(frozen=True, eq=False)
class Product:
    """X W^T with a trained W, as a forward pass computes it.

    Attributes:
        name: Qualified name of the parameter that W is, or is made of.
        x: X, [*, N]; the tensor itself, not a copy.
        out: The product, [*, M], or the output that it was added to.
        config: How X is sketched; None where it is not.
        codec: What X is stored in, whole; None where it is sketched or kept as it is.
        held: Whether X is kept by the caller in any case, so that nothing new is: then ``codec`` is "fp32".
        row_norms: What the rows of the sketch are drawn by, besides X; None where there are none.
        anchor: The x_0, [*, N], whose linear fit is taken off X before it is sketched; None where none is.
        row_mask: The rows of X that are sketched, [*]; None where all are.
    """

    name: str
    x: Tensor
    out: Tensor
    config: RMMConfig | None = None
    codec: str | None = None
    held: bool = False
    row_norms: Tensor | None = None
    anchor: Tensor | None = None
    row_mask: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """X as a matrix [B, N] outside of the graph; a copy of the rows that are sketched where not all are."""
        return marked_rows(self.x.detach(), self.row_mask)

    @property
    def anchor_rows(self) -> Tensor | None:
        """The anchor likewise."""
        return None if self.anchor is None else self.anchor.detach().reshape(-1, self.anchor.shape[-1])


def marked_rows(tensor: Tensor, row_mask: Tensor | None) -> Tensor:  # [*, M], [*] -> [B, M]
    """Return ``tensor`` as a matrix, or a copy of those of its rows that the mask marks."""
    return tensor.reshape(-1, tensor.shape[-1]) if row_mask is None else tensor[row_mask]


class WatchProducts(TorchFunctionMode):
    """While active, reports every product with one of the given parameters.

    Reached are ``F.linear``, ``addmm``, ``mm``, ``matmul`` and ``@`` with the weight on the right, and this library's
    layers.  A weight made of one parameter, such as a transpose, a cast or ``(1 - beta) I + beta W``, goes by that
    parameter's name.

    Args:
        names: Parameters and their names.
        on_product: Called with each product that autograd will ask for the gradient of its weight, but for those with
            a ``row_mask`` that marks nothing: their gradient is known to be zero.
        sharded: The model, if the parameters that its forward pass reads are others than those in ``names``: where
            ``fully_shard`` distributes it, layers have their whole weights while they run, and shards else.
    """

    def __init__(
        self, names: Mapping[Tensor, str], on_product: Callable[[Product], None], sharded: Module | None = None
    ) -> None:
        super().__init__()
        self._names = WeakIdKeyDictionary(dict(names))
        self._sharded = sharded
        self._made_of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._on_product = on_product

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        # The mode is off while it handles a call: what this product is made of is not reported again.
        out = func(*args, **kwargs)
        read = _PRODUCTS.get(func)
        if read is not None:
            for found in read(*args, **kwargs):
                name = self._name_of(found.weight)
                if name is not None and out.requires_grad and found.weight.requires_grad:
                    # A product that the model left to torch may be one that a mode has made.
                    config = found.config if found.codec is not None else found.config or config_of(out)
                    config = None if config is None else config.for_shape(found.x.shape[:-1])
                    row_mask = row_mask_of(out) if found.row_mask is None else found.row_mask
                    kept = (config, found.codec, False, found.row_norms, found.anchor, row_mask)
                    if is_of_held(out):
                        kept = (None, "fp32", True, None, None, None)
                    elif row_mask is not None and count_rows(row_mask) == 0:
                        continue
                    self._on_product(Product(name, found.x, out, *kept))
        elif isinstance(out, Tensor) and out.dim() == 2 and out.requires_grad:
            made_of = {self._name_of(arg) for arg in args if isinstance(arg, Tensor)} - {None}
            if len(made_of) == 1 and not any(isinstance(arg, Tensor) and arg.dim() > 2 for arg in args):
                self._remember(out, made_of.pop(), args)
        return out

    def _name_of(self, tensor: Tensor) -> str | None:
        for known in (tensor, tensor._base):
            if known is not None:
                name = self._names.get(known) or self._made_of.get(known) or self._name_of_whole(known)
                if name is not None:
                    return name
        return None

    def _name_of_whole(self, weight: Tensor) -> str | None:
        """The name of what stands in the place of a sharded parameter now, if that is one of those asked for."""
        if self._sharded is None or not isinstance(weight, Parameter):
            return None
        name = next((name for name, parameter in self._sharded.named_parameters() if parameter is weight), None)
        if name not in self._names.values():
            return None
        self._names[weight] = name
        return name

    def _remember(self, out: Tensor, name: str | None, args: tuple) -> None:
        """Note that ``out`` is the parameter in another form: as many numbers, and nothing else that needs a gradient.

        That tells a cast or a transpose from the features that a product of the weight would be.
        """
        sources = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
        if len(sources) == 1 and sources[0].numel() == out.numel():
            self._made_of[out] = name


@dataclass(frozen=True)
class _Found:
    x: Tensor
    weight: Tensor
    config: RMMConfig | None = None
    codec: str | None = None
    row_norms: Tensor | None = None
    anchor: Tensor | None = None
    row_mask: Tensor | None = None


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> list[_Found]:
    return [_Found(input, weight)]


def _matmul(input: Tensor, other: Tensor, **_: Any) -> list[_Found]:
    return [_Found(input, other)] if other.dim() == 2 and input.dim() >= 2 else []


def _mm(input: Tensor, mat2: Tensor, **_: Any) -> list[_Found]:
    return [_Found(input, mat2)]


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **_: Any) -> list[_Found]:
    return [_Found(mat1, mat2)]


def _sketched(function: Callable[..., Any], x: str, weight: str) -> Callable[..., list[_Found]]:
    signature = inspect.signature(function)

    def read(*args: Any, **kwargs: Any) -> list[_Found]:
        given = signature.bind(*args, **kwargs).arguments
        row_norms, row_mask = given.get("row_norms"), given.get("row_mask")
        if row_norms is not None and row_mask is not None:
            row_norms = row_norms[row_mask.reshape(-1)]
        return [_Found(given[x], given[weight], config=given["config"], row_norms=row_norms, row_mask=row_mask)]

    return read


def _shared(x: Tensor, weight: Tensor, *, codec: Any = "fp32", **_: Any) -> list[_Found]:
    return [_Found(x, weight, codec=codec if isinstance(codec, str) else codec.spec)]


def _anchored(
    x: Tensor, weight: Tensor, x_0: Tensor, weight_0: Tensor | None = None, *, config: RMMConfig, **_: Any
) -> list[_Found]:
    found = [_Found(x, weight, config=config, anchor=x_0)]
    return found if weight_0 is None else [*found, *_shared(x_0, weight_0, codec=config.x0_codec)]


_PRODUCTS: dict[Any, Callable[..., list[_Found]]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    lean.rmm_linear: _sketched(lean.rmm_linear, "x", "weight"),
    lean.addmm: _sketched(lean.addmm, "mat1", "mat2"),
    lean.shared_input_linear: _shared,
    lean.anchored_linear: _anchored,
}
