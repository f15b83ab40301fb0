"""The report as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmm_gnn.diagnostics.report import MemoryReport, SavedEntry

# Named in the summary; the table lists the others.
_MAX_NAMES = 6
_MAX_SHARING = 2


def format_bytes(size: int | None) -> str:
    """Write a size with the largest binary unit that leaves a number of at least 1."""
    if size is None:
        return "not measured"
    if abs(size) < 1024:
        return f"{size} B"
    unit = min((abs(size).bit_length() - 1) // 10, 3)
    return f"{size / 1024**unit:.1f} {('', 'KiB', 'MiB', 'GiB')[unit]}"


def entry_table(report: MemoryReport, limit: int | None) -> str:
    """One row for each operator in a module."""
    total = report.saved_bytes
    head = ["module", "operator", "bytes", "%", "storages", "largest", "also kept by"]
    rows = [
        [
            entry.module,
            entry.operator,
            format_bytes(entry.saved_bytes),
            _percent(entry.saved_bytes, total),
            str(entry.num_storages),
            f"{entry.largest_dtype}{list(entry.largest_shape)}",
            _sharing(entry),
        ]
        for entry in report.entries[:limit]
    ]
    rest = report.entries[len(rows) :]
    if rest:
        size = sum(entry.saved_bytes for entry in rest)
        count = sum(entry.num_storages for entry in rest)
        rows.append([f"and {len(rest)} more", "", format_bytes(size), _percent(size, total), str(count), "", ""])
    count = sum(entry.num_storages for entry in report.entries)
    foot = ["total", "", format_bytes(total), _percent(total, total), str(count), "", ""]
    return align(head, rows, foot, right={2, 3, 4})


def total_table(what: str, sums: Mapping[str, int], limit: int | None) -> str:
    """One row for each of the names."""
    total = sum(sums.values())
    shown = list(sums.items())[:limit]
    rest = list(sums.items())[len(shown) :]
    if rest:
        shown.append((f"and {len(rest)} more", sum(size for _, size in rest)))
    rows = [[name, format_bytes(size), _percent(size, total)] for name, size in shown]
    foot = ["total", format_bytes(total), _percent(total, total)]
    return align([what, "bytes", "%"], rows, foot, right={1, 2})


def summary(report: MemoryReport) -> str:
    """What stands below the table: everything that is not an activation, and what was measured."""
    mode = "training" if report.training else "eval"
    optimizer = "none given" if report.optimizer_bytes is None else format_bytes(report.optimizer_bytes)
    lines = [
        f"saved for backward   {format_bytes(report.saved_bytes)} as above ({mode} mode, {report.device}), and, there "
        f"anyway: parameters and buffers {format_bytes(report.saved_parameter_bytes)}, "
        f"inputs {format_bytes(report.saved_input_bytes)}",
        f"parameters           {format_bytes(report.parameter_bytes)}, buffers {format_bytes(report.buffer_bytes)}",
        f"gradients            {format_bytes(report.gradient_bytes)}",
        f"optimizer            {optimizer}",
        f"held (measured)      {format_bytes(report.held_bytes)} between forward and backward, above the start",
        f"peak (measured)      {format_bytes(report.peak_bytes)} in forward and backward, above the start",
    ]
    if report.allocator_peak_bytes is not None:
        lines.append(f"allocator's peak     {format_bytes(report.allocator_peak_bytes)}, all that is on the device")
    if report.compressed_bytes:
        names = [f"{name} {format_bytes(size)}" for name, size in report.untouched().items()]
        more = [f"{len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
        lines.append(f"compressed           {format_bytes(report.compressed_bytes)}")
        lines.append(f"not compressed       {', '.join(names[:_MAX_NAMES] + more) or 'nothing'}")
    return "\n".join(lines)


def _percent(size: int, total: int) -> str:
    return f"{100 * size / total:.1f}" if total else "-"


def _sharing(entry: SavedEntry) -> str:
    names = list(entry.shared_with[:_MAX_SHARING])
    more = len(entry.shared_with) - len(names)
    return ", ".join(names + ([f"{more} more"] if more else []))


def align(head: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str], right: set[int]) -> str:
    """Set cells in columns between two rules; columns in ``right`` stand flush right."""
    cells = [head, *rows, foot]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), rule, *map(line, rows), rule, line(foot)])
