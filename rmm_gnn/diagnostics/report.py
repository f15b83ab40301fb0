"""What ``memory_report`` found: numbers to compute with, a table to read, JSON to keep, a figure to show."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rmm_gnn._validation import check_choice, check_positive_int

ROOT = "(model)"
LOSS = "(loss)"


@dataclass(frozen=True)
class SavedEntry:
    """What one operator in one module keeps for backward.

    Attributes:
        module: Qualified name of the innermost module that was running; ``(model)`` is the model itself, ``(loss)``
            what came after it.
        operator: The public function that was called (``relu`` for ``F.relu`` and ``Tensor.relu``), else the name of
            the node in the autograd graph.
        saved_bytes: Bytes of the storages that were first kept here.
        num_storages: Their number.
        largest_shape: Shape of the tensor with the largest of them.
        largest_dtype: Its type.
        compressed: Whether an operator of this library keeps them.
        shared_with: ``module operator`` of others that keep some of the same storages, and so keep them alive.
    """

    module: str
    operator: str
    saved_bytes: int
    num_storages: int
    largest_shape: tuple[int, ...]
    largest_dtype: str
    compressed: bool
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class MemoryReport:
    """The memory of one forward and backward pass; made by ``memory_report``.

    Attributes:
        device: Where model and inputs are.
        training: The mode the model was in.
        entries: What is kept for backward besides parameters and inputs, largest first.
        saved_parameter_bytes: Parameters, buffers and caches of the model that backward reads; they exist anyway.
        saved_input_bytes: Inputs that backward reads; the caller has them anyway.
        parameter_bytes: All parameters.
        buffer_bytes: All buffers.
        gradient_bytes: Gradients of the parameters after one backward pass.
        optimizer_bytes: Tensors in the optimizer's state as it is now, or None without an optimizer.
        held_bytes: Measured: what the allocator had given out between forward and backward, above the start.
        peak_bytes: Measured: the highest point of the step, above the start.
        allocator_peak_bytes: Measured, on CUDA: ``torch.cuda.max_memory_allocated``, all that is on the device.
    """

    device: str
    training: bool
    entries: tuple[SavedEntry, ...]
    saved_parameter_bytes: int
    saved_input_bytes: int
    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int | None
    held_bytes: int | None
    peak_bytes: int | None
    allocator_peak_bytes: int | None

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for backward, each storage once, parameters and inputs excepted."""
        return sum(entry.saved_bytes for entry in self.entries)

    @property
    def compressed_bytes(self) -> int:
        """The part of ``saved_bytes`` that operators of this library keep."""
        return sum(entry.saved_bytes for entry in self.entries if entry.compressed)

    def by_module(self, depth: int | None = None) -> dict[str, int]:
        """Bytes kept for backward by module, largest first.

        Args:
            depth: Sum up modules that agree in this many leading parts of their names; each for itself if None.

        Raises:
            TypeError: If ``depth`` is not a whole number.
            ValueError: If ``depth`` is less than 1.
        """
        check_positive_int("depth", depth, optional=True)
        return _ranked(self.entries, lambda entry: ".".join(entry.module.split(".")[:depth]))

    def by_operator(self) -> dict[str, int]:
        """Bytes kept for backward by operator, largest first."""
        return _ranked(self.entries, lambda entry: entry.operator)

    def untouched(self) -> dict[str, int]:
        """Bytes kept by operators that are not of this library, largest first: what was not compressed."""
        stock = [entry for entry in self.entries if not entry.compressed]
        return _ranked(stock, lambda entry: entry.operator)

    def table(self, by: str = "entry", *, limit: int | None = 20) -> str:
        """Return a table of what is kept for backward, largest first, with shares and total.

        Args:
            by: One row for each ``"entry"`` (operator in a module), ``"module"`` or ``"operator"``.
            limit: Rows to show; the others are summed up in one.  All if None.

        Raises:
            TypeError: If ``by`` is not a name or ``limit`` not a whole number.
            ValueError: If ``by`` is unknown or ``limit`` less than 1.
        """
        from rmm_gnn.diagnostics.table import entry_table, total_table

        check_choice("by", by, ("entry", "module", "operator"))
        check_positive_int("limit", limit, optional=True)
        if by == "entry":
            return entry_table(self, limit)
        return total_table(by, self.by_module() if by == "module" else self.by_operator(), limit)

    def __str__(self) -> str:
        from rmm_gnn.diagnostics.table import summary

        return f"{self.table()}\n\n{summary(self)}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, and ``saved_bytes``, as plain numbers, strings and lists."""
        return {"saved_bytes": self.saved_bytes, **dataclasses.asdict(self)}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return what ``to_dict`` returns as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> MemoryReport:
        """Rebuild the report that ``to_json`` wrote.

        Raises:
            ValueError: If ``text`` is something else.
        """
        try:
            fields = json.loads(text)
            del fields["saved_bytes"]
            entries = tuple(_entry_from(entry) for entry in fields.pop("entries"))
            return cls(entries=entries, **fields)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"'text' must be what to_json returned (got {error!r} on reading it). Write the report again."
            ) from error

    def plot(self, path: str | os.PathLike[str], *, limit: int = 30) -> None:
        """Draw the bytes of each module as a bar, coloured by operator, and write the figure to ``path``.

        Args:
            path: Where to write; the ending chooses the format.
            limit: Bars to draw; the other modules are summed up in one.

        Raises:
            TypeError: If ``limit`` is not a whole number.
            ValueError: If ``limit`` is less than 1.
            ImportError: If matplotlib is not installed.
        """
        from rmm_gnn.diagnostics.plot import draw

        check_positive_int("limit", limit)
        draw(self, path, limit)


def _entry_from(fields: dict[str, Any]) -> SavedEntry:
    tuples = {name: tuple(fields[name]) for name in ("largest_shape", "shared_with")}
    return SavedEntry(**{**fields, **tuples})


def _ranked(entries: Iterable[SavedEntry], key: Callable[[SavedEntry], str]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for entry in entries:
        sums[key(entry)] += entry.saved_bytes
    return dict(sums.most_common())
