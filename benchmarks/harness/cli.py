"""The command line of a `Sweep`: one flag per field, with the field's own help and default."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.config import DIGITS, SMOKE, Sweep, resolve
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.options import flags, parser_for

_EPILOG = f"""
Flags that are not given take the defaults above, the published protocol for GCN2 on ogbn-arxiv, except that
  --dataset digits starts from {flags(DIGITS)}
  --smoke          starts from {flags(SMOKE)}
In --out: records.jsonl (one line per finished run), table.md, accuracy.png (against epoch), frontier.png (accuracy and
time against saved bytes).
Exit codes: 0 done; 2 something to put right, which is said on standard error: a value out of range, data or a
checkpoint that cannot be read, a place that cannot be written, a run that does not fit into memory (the others go on);
130 interrupted by Ctrl-C. Finished runs are kept in all cases, and --resume --out DIR goes on, with a run that was cut
off from its last checkpoint (checkpoint-KEY.pt in --out).
"""


def parse(argv: Sequence[str] | None, description: str) -> Sweep:
    """Read a command line.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.
        description: First paragraph of ``--help``.

    Returns:
        The resolved configuration.

    Raises:
        BenchmarkError: When a value is out of its range.
    """
    given = vars(parser_for(Sweep, description, _EPILOG).parse_args(argv))
    try:
        return resolve({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
