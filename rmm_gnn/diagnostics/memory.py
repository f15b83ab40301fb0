"""The ledger: which layer, and which operator in it, takes the memory of a training step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from rmm_gnn.diagnostics.peak import measure_step
from rmm_gnn.diagnostics.recorder import Recorder
from rmm_gnn.diagnostics.report import MemoryReport, SavedEntry
from rmm_gnn.diagnostics.restoring import SetAsideGradients, leaves_of, left_as_found, same_random_numbers
from rmm_gnn.diagnostics.storages import StorageSizes, captured_by, tensors_in

LossFn = Callable[[Any], Tensor]


def memory_report(
    model: Module,
    *inputs: Any,
    loss_fn: LossFn | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **kwargs: Any,
) -> MemoryReport:
    """Run forward and backward of ``model(*inputs, **kwargs)`` and report what memory it takes, by layer and operator.

    The bytes saved for backward are exact: those of every storage that reaches autograd's saved-tensor hooks and is
    still kept when forward has ended, each counted once, where it was first saved.  What a function hides from the
    hooks (attributes of its context, closures) is in ``held_bytes`` alone, which is measured, as is ``peak_bytes``: on
    CUDA by the allocator's counters, whose peak is reset, on CPU from the allocations that the profiler notes (it may
    write lines of its own to stderr).  Blocks under activation checkpointing save what they keep, not what they make
    anew in backward; the peak has both.

    The model itself runs, in the mode it is in: forward three times (to fill caches, to measure, to record), backward
    twice, with the same random numbers.  Buffers, attributes, gradients and PyTorch's default generators are left as
    they were, and no hooks stay, also if forward raises.  Gradients start as None, as after ``zero_grad()``.  Tensors
    given directly go in detached; inputs that the model changes in place stay changed.  Under ``torch.no_grad()``
    nothing is saved, and the report says so.

    Args:
        model: The model, on the device of the inputs.
        *inputs: Arguments of ``forward``: tensors, sparse matrices, graph objects.
        loss_fn: Takes the output and returns the scalar loss.  What it saves is reported as module ``(loss)``; tensors
            that it captures count as inputs.  If None, the sum of all floating-point outputs, which saves nothing.
        optimizer: Counted as its state is now; most have none before their first step.
        **kwargs: Keyword arguments of ``forward``.

    Returns:
        The report; print it for a table.

    Raises:
        TypeError: If ``model`` is not a module, ``loss_fn`` not callable, ``optimizer`` not an optimizer, or the loss
            not a tensor.
        ValueError: If a parameter is not initialised yet or has a hook that runs after its gradient is accumulated (it
            may step an optimizer), a tensor is on the meta device, a list or object among the inputs holds a tensor
            with a graph of its own behind it, or the loss is not a scalar.
        RuntimeError: On CPU, if a profiler is running.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> report = memory_report(model, torch.randn(1000, 8))
        >>> print(report.table())
        module  operator     bytes      %  storages  largest            also kept by
        ----------------------------------------------------------------------------
        1       relu      62.5 KiB  100.0         1  float32[1000, 16]  2 linear
        ----------------------------------------------------------------------------
        total             62.5 KiB  100.0         1
        >>> report.by_module()
        {'1': 64000}
    """
    given = list(tensors_in(*_aliases(inputs, kwargs)))
    _check(model, given, loss_fn, optimizer)
    around = list(tensors_in(captured_by(loss_fn)))
    parameters = list(model.parameters())
    devices = {tensor.device for tensor in [*parameters, *model.buffers(), *given]}
    if torch._C._autograd._profiler_enabled() and all(device.type == "cpu" for device in devices):
        raise RuntimeError(
            "memory_report must not run inside a profiler (got one that is running). "
            "Call it outside of torch.profiler.profile: on CPU it measures with a profiler of its own."
        )
    gradients = SetAsideGradients()

    def forward() -> Tensor | None:
        positional, named = _aliases(inputs, kwargs)
        output = model(*positional, **named)
        return _default_loss(output) if loss_fn is None else _checked_loss(loss_fn(output))

    def backward(loss: Tensor | None) -> None:
        if loss is not None and loss.requires_grad:
            gradients.take(leaves_of(loss))
            loss.backward()

    with left_as_found(model):
        try:
            gradients.take(leaf for leaf in [*parameters, *given] if leaf.requires_grad)
            with same_random_numbers(devices):
                backward(forward())
            gradients.clear()
            with same_random_numbers(devices):
                measured = measure_step(forward, backward, devices)
            gradient_bytes = _total(StorageSizes(p.grad for p in parameters if p.grad is not None))
            gradients.clear()

            owned = StorageSizes([*parameters, *model.buffers(), *tensors_in(model)])
            recorder = Recorder()
            with same_random_numbers(devices), recorder.watch(model):
                # The loss holds the graph, and with it all that is saved.
                loss = forward()
            entries, of_parameters, of_inputs = recorder.entries(
                parameters=owned, inputs=StorageSizes([*given, *around])
            )
            del loss
        finally:
            gradients.give_back()

    return MemoryReport(
        device=_name(devices),
        training=model.training,
        entries=entries,
        saved_parameter_bytes=of_parameters,
        saved_input_bytes=of_inputs,
        parameter_bytes=_total(StorageSizes(parameters)),
        buffer_bytes=_total(StorageSizes(model.buffers())),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=None if optimizer is None else _total(StorageSizes(tensors_in(dict(optimizer.state)))),
        **measured._asdict(),
    )


def saved_entries(model: Module, inputs: tuple[Any, ...], loss_fn: LossFn) -> tuple[SavedEntry, ...]:
    """The entries of ``memory_report`` alone, from one forward pass of a model whose caches are full."""
    given = list(tensors_in(*_aliases(inputs, {})))
    owned = StorageSizes([*model.parameters(), *model.buffers(), *tensors_in(model)])
    recorder = Recorder()
    with recorder.watch(model):
        loss = loss_fn(model(*_aliases(inputs, {})[0]))
    entries, _, _ = recorder.entries(parameters=owned, inputs=StorageSizes([*given, *tensors_in(captured_by(loss_fn))]))
    del loss
    return entries


def _aliases(inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """New tensors with the same values: what is remembered of a tensor in one pass must not serve in the next."""

    def alias(value: Any) -> Any:
        return value.detach().requires_grad_(value.requires_grad) if type(value) is Tensor else value

    return [alias(value) for value in inputs], {name: alias(value) for name, value in kwargs.items()}


def _default_loss(output: Any) -> Tensor | None:
    """The sum of all floating-point outputs that require a gradient, or None if there are none."""
    sums = [out.sum() for out in tensors_in(output) if out.requires_grad and out.is_floating_point()]
    return torch.stack([value.to(sums[0]) for value in sums]).sum() if len(sums) > 1 else next(iter(sums), None)


def _checked_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"'loss_fn' must return a tensor (got {type(loss).__name__}). Return the scalar loss.")
    if loss.numel() != 1:
        raise ValueError(f"'loss_fn' must return a scalar (got shape {tuple(loss.shape)}). Take the mean of it.")
    return loss


def _check(model: Any, given: Collection[Tensor], loss_fn: Any, optimizer: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"'model' must be a torch.nn.Module (got {type(model).__name__}). Wrap the function in one.")
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(
            f"'loss_fn' must be callable (got {type(loss_fn).__name__}). Give a function from the output to the loss."
        )
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"'optimizer' must be a torch.optim.Optimizer (got {type(optimizer).__name__}). Or leave it out."
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"'model' must be initialised (got {name!r} without a shape). Run the model once, with torch.no_grad()."
            )
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"'model' must not have hooks that run after a gradient is accumulated (got one on {name!r}). "
                "They may step an optimizer; remove them for the report."
            )
    for tensor in [*model.parameters(), *model.buffers(), *given]:
        if tensor.is_meta:
            raise ValueError("'model' must be on a real device (got meta). Call model.to_empty(device='cpu') first.")
    for tensor in given:
        if tensor.grad_fn is not None:
            raise ValueError(
                f"'inputs' must hold no tensors with a graph behind them (got {tensor.grad_fn.name()}). "
                "Pass x.detach().requires_grad_()."
            )


def _total(sizes: Mapping[Any, int]) -> int:
    return sum(sizes.values())


def _name(devices: Collection[torch.device]) -> str:
    return ", ".join(sorted(str(device) for device in devices)) or "cpu"
