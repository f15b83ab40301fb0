"""How time and saved bytes grow: measurements put together to curves, with their fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.micro import power_law
from benchmarks.micro.timing import Spread, spread

QUANTITIES = ("seconds", "saved_bytes")


class Sweep(NamedTuple):
    """What grows while the rest stays.

    Attributes:
        axis: "rows" or "width".
        sizes: Rising.
        layers: Rows and width of the layer of each size.
        fit_from: The smallest size of which the time is fitted.
    """

    axis: str
    sizes: list[int]
    layers: list[tuple[int, int]]
    fit_from: int


class Curve(NamedTuple):
    """One quantity of one layer while the rows or the width grow.

    Attributes:
        axis: What grows, "rows" or "width".
        quantity: What is measured, "seconds" or "saved_bytes".
        layer: Whose.
        sizes: Rising.
        values: One for each size.
        law: The fit; None for too few sizes.
    """

    axis: str
    quantity: str
    layer: str
    sizes: list[int]
    values: list[Spread]
    law: power_law.PowerLaw | None


def curves(found: Mapping[tuple[int, int], Sequence[dict[str, Any]]], sweeps: Sequence[Sweep]) -> Iterator[Curve]:
    """Yield the curve of every quantity of every layer, with its fit.

    Args:
        found: Records with ``layer``, ``seconds`` (a list) and ``saved_bytes`` (or None), by rows and width.
        sweeps: Which of it belongs together.
    """
    for sweep in sweeps:
        names = dict.fromkeys(record["layer"] for shape in sweep.layers for record in found[shape])
        for quantity in QUANTITIES:
            for name in names:
                sizes, values = [], []
                for size, shape in zip(sweep.sizes, sweep.layers, strict=True):
                    for record in found[shape]:
                        if record["layer"] == name and record[quantity] is not None:
                            sizes.append(size)
                            values.append(spread(record[quantity] if quantity == "seconds" else [record[quantity]]))
                if sizes:
                    medians = [value.median for value in values]
                    start = sweep.fit_from if quantity == "seconds" else 0
                    yield Curve(sweep.axis, quantity, name, sizes, values, power_law.fit(sizes, medians, start))


def exponents(drawn: Sequence[Curve]) -> tuple[list[list[str]], list[str]]:
    """Rows and headers of the table of fits, for ``tabulate``."""
    columns = [(quantity, axis) for quantity in QUANTITIES for axis in ("rows", "width")]
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for curve in drawn:
        law = curve.law
        text = "-" if law is None else f"{law.format()}, {law.start:,} - {law.stop:,}"
        cells.setdefault(curve.layer, {})[curve.quantity, curve.axis] = text
    lines = [[name, *(found.get(column, "-") for column in columns)] for name, found in cells.items()]
    return lines, ["layer", *(f"{quantity.replace('_', ' ')} by {axis}, fitted over" for quantity, axis in columns)]
