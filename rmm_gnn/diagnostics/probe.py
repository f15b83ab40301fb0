"""Records, during training, how noisy the weight gradients of a model's layers are."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn._files import whole_file
from rmm_gnn._validation import check_choice, check_pattern, check_positive_int
from rmm_gnn.codecs import get_codec
from rmm_gnn.config import RMMConfig
from rmm_gnn.diagnostics.noise_record import NoiseRecord
from rmm_gnn.diagnostics.online import OnlineSketch
from rmm_gnn.diagnostics.products import Product, WatchProducts, marked_rows
from rmm_gnn.diagnostics.variance import NoiseParts, noise_parts
from rmm_gnn.sketches.moments import Moments, moments, squared_norms, tiles
from rmm_gnn.wrapped import is_wrapped

MODES = ("exact", "sketch")


class GradientProbe:
    """Measures every so many steps what ``rmm_variance`` and its relatives say of a model in training.

    Give it a model and train as ever; every ``every``-th training forward pass is watched, in the model as it is: stock
    layers, converted ones, and models under ``compress_activations``.  A layer that keeps a sketch is judged by its own
    config, an anchored one by what is left to sketch; a function of which a mode keeps a sketch by the mode's; what
    keeps its input by ``config``, which anchors nothing.  No random number of PyTorch's generators is drawn, so a run
    with a probe is the run without.

    *Memory.*  Records are kept for the newest ``max_records`` measurements only.  At a watched step, mode "exact" holds
    the input of every watched layer until its gradient has come, as stock layers do anyway; mode "sketch" never holds
    it, but a sketch of the size that the config keeps and two numbers a row, and estimates without bias: the variances
    closely where alpha is small, the square of the gradient, and alpha, with an error of the size of the sketch's own
    noise, so that they can come out negative.

    *Limits.*  One forward pass is one step, also where gradients are accumulated over several.  Not seen are blocks
    under reentrant checkpointing, products within a ``compress_activations`` that the model itself enters, and compiled
    code: a compiled model is refused, and one that is compiled later is never measured.  A loss scale s multiplies all
    variances by s^2 and no ratio.  Where X is multiplied by c W or by W plus a constant, it is the gradient of that
    matrix which is measured.

    A layer with ``importance_sampling`` is judged by the norms that it draws rows with; mode "sketch" does not know
    that family.

    Args:
        model: What is trained.
        config: Judges layers and functions that keep their whole input; ``RMMConfig()`` if None.
        layers: Which weights to watch: a regular expression that matches their whole qualified names, or the names;
            all if None.
        every: Watch one step of so many, the first one included.
        mode: "exact" or "sketch".
        max_records: Keep so many of the newest records.

    Raises:
        ValueError: If no weight is selected, a name is unknown, or a value is out of range; in the forward pass, if the
            noise of a family cannot be measured there.
        TypeError: If ``model`` is not a module or is compiled, or a value is of the wrong type.

    Example:
        >>> model = torch.nn.Linear(8, 2)
        >>> with GradientProbe(model, RMMConfig(rate=0.1), every=1) as probe:
        ...     model(torch.randn(100, 8)).square().mean().backward()
        >>> [(record.layer, record.sketch_size) for record in probe.records]
        [('weight', 10)]
    """

    def __init__(
        self,
        model: Module,
        config: RMMConfig | None = None,
        *,
        layers: str | Iterable[str] | None = None,
        every: int = 20,
        mode: str = "exact",
        max_records: int = 100_000,
    ) -> None:
        if not isinstance(model, Module):
            raise TypeError(f"'model' must be a torch.nn.Module (got {type(model).__name__}). Pass the model itself.")
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            raise TypeError(
                "'model' must not be compiled (got the result of torch.compile, or of its own compile()). "
                "Compiled code is never measured: pass, and run, the model uncompiled."
            )
        if config is not None and not isinstance(config, RMMConfig):
            raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
        self.config = RMMConfig() if config is None else config
        check_positive_int("every", every)
        self.every = every
        self.mode = check_choice("mode", mode, MODES)
        self.records: deque[NoiseRecord] = deque(maxlen=check_positive_int("max_records", max_records))
        self.step = -1
        self._names = _selected(model, layers)
        self._watch: WatchProducts | None = None
        self._handles = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, prepend=True, always_call=True),
        ]

    def remove(self) -> None:
        """Stop measuring; the records stay."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> GradientProbe:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _enter(self, model: Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
            return
        self.step += 1
        if self.step % self.every == 0:
            sharded = model if any(is_wrapped(type(module)) for module in model.modules()) else None
            self._watch = WatchProducts(self._names, self._watcher(self.step), sharded)
            self._watch.__enter__()

    def _leave(self, model: Module, args: Any, out: Any) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None, None, None)

    def _watcher(self, step: int) -> Callable[[Product], None]:
        count = 0

        def watch(product: Product) -> None:
            nonlocal count
            count += 1
            name, kept, row_mask = product.name, _kept(product), product.row_mask
            # Taken out when it is used, so that X goes as soon as its gradient has come; and the hook must not hold the
            # tensor it hangs on, a cycle that would never be freed.
            held = [self._measurement(product, step * 10_007 + count)]

            def record(grad_output: Tensor) -> None:
                if held:
                    with torch.no_grad(), torch.autocast(grad_output.device.type, enabled=False):
                        gradient = marked_rows(grad_output, row_mask)
                        self.records.append(_record(step, name, kept, gradient.shape[0], *held.pop()(gradient)))

            product.out.register_hook(record)

        return watch

    def _measurement(self, product: Product, number: int) -> Callable[[Tensor], tuple[Moments, NoiseParts, int]]:
        """What is to be done with the gradient of a product's output; holds what it needs of X."""
        name, codec, config = product.name, product.codec, product.config or self.config
        config = config.for_shape(product.x.shape[:-1])
        rows, anchor = product.rows, product.anchor_rows
        size = rows.shape[0] if codec is not None else config.sketch_size(rows.shape[0])
        seed = torch.full((), number, dtype=torch.int64, device=rows.device)
        if self.mode == "sketch" and codec is None:
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                held = OnlineSketch.of(rows, config, seed, anchor)
            return lambda gradient: (*held.measure(gradient), size)
        # Not of a layer: the family is judged by its norms, which such a product does not have.
        if product.config is None and codec is None and config.family.reads_row_norms:
            raise ValueError(
                f"'config' must have a family that can judge layers which keep their input (got {config.family.name!r} "
                f"for '{name}'). Convert the model first, or judge them by 'norm_sampling'."
            )
        inputs = [rows] if anchor is None else [rows, anchor]
        versions, row_norms = [tensor._version for tensor in inputs], product.row_norms

        def measure(gradient: Tensor) -> tuple[Moments, NoiseParts, int]:
            if [tensor._version for tensor in inputs] != versions:
                raise RuntimeError(
                    f"The input of '{name}' was changed in place after the layer had read it, so its noise "
                    "cannot be measured exactly. Use GradientProbe(mode='sketch')."
                )
            if codec is not None:
                return moments(rows, gradient), _code_noise(rows, gradient, codec), size
            noise = noise_parts(rows, gradient, config, seed=seed, row_norms=row_norms, anchor=anchor)
            return moments(rows, gradient), noise, size

        return measure

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write the records, one JSON object a line; a number that is not finite becomes null."""
        with whole_file(path, "w", encoding="utf-8") as file:
            for record in self.records:
                values = asdict(record) | {
                    "rmm_variance": record.rmm_variance,
                    "variance_ratio": record.variance_ratio,
                    "relative_noise": record.relative_noise,
                }
                finite = {
                    name: None if isinstance(value, float) and not abs(value) < float("inf") else value
                    for name, value in values.items()
                }
                file.write(json.dumps(finite) + "\n")

    def plot(self, path: str | os.PathLike[str], layers: Iterable[str] | None = None) -> None:
        """Draw the paper's Figures 3 and 5: both variances, their ratio with the paper's bound, and alpha, by step.

        Args:
            path: Where to write; the ending decides the format.
            layers: Names of the weights to draw, a column each; the first four that were recorded if None.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If nothing was recorded of a layer.
        """
        from rmm_gnn.diagnostics.probe_plot import draw

        draw(self.records, path, layers)


def _selected(model: Module, layers: str | Iterable[str] | None) -> dict[Tensor, str]:
    """Trained matrices by name: those that ``layers`` selects."""
    known = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if layers is None:
        chosen = list(known)
    elif isinstance(layers, str):
        pattern = check_pattern("layers", layers, "Write '.*' for all weights, or give names as a list.")
        chosen = [name for name in known if pattern.fullmatch(name)]
    else:
        chosen = list(layers)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(
            f"'layers' must name trained weights of the model (got {unknown or layers!r}). "
            f"They are: {', '.join(known) or 'none'}."
        )
    return {known[name]: name for name in chosen}


def _code_noise(rows: Tensor, gradient: Tensor, codec: str) -> NoiseParts:
    """The noise of Y^T X with X kept whole, in a codec."""
    rounding = torch.zeros((), dtype=torch.float64, device=rows.device)
    if get_codec(codec).rounds_at_random:
        for part, tile in tiles(rows, more_columns=gradient.shape[1]):
            per_row = get_codec(codec).variance(tile).sum(1, dtype=torch.float64)
            rounding += per_row.dot(squared_norms(gradient[part]))
    return NoiseParts(torch.zeros_like(rounding), rounding)


def _kept(product: Product) -> str:
    if product.held:
        return "held"
    if product.codec is not None:
        return "code"
    return "sketch" if product.config is not None else "whole"


def _record(step: int, layer: str, kept: str, num_rows: int, m: Moments, noise: NoiseParts, size: int) -> NoiseRecord:
    a, c, d, sketch, rounding = torch.stack([*m, *noise]).tolist()
    return NoiseRecord(
        step=step,
        layer=layer,
        num_rows=num_rows,
        sketch_size=size,
        kept=kept,
        gradient_square=c,
        sgd_variance=(num_rows * d - c) / (num_rows - 1) if num_rows > 1 else float("nan"),
        sketch_variance=sketch,
        rounding_variance=rounding,
        paper_rmm_variance=(a - c) / size,
        alignment=c / a if a else float("nan"),
        ratio_bound=(num_rows - 1) / size * (a + c) / c if c else float("inf"),
    )
