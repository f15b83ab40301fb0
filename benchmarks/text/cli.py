"""The command line of a `TextSweep`: one flag per field, with the field's own help and default."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.options import flags, parser_for
from benchmarks.text.config import SMOKE, TextSweep, resolve

_EPILOG = f"""
Tasks: cola mnli mrpc qnli qqp rte sst2 stsb wnli.
Flags that are not given take the defaults above, except that
  --smoke          starts from {flags(SMOKE)}
In --out: records.jsonl (one line per finished run), report.md (the tables), curves.png (losses and scores by step).
Exit codes: 0 done; 2 something to put right, which is said on standard error: a value out of range, data or a
checkpoint that cannot be read, a place that cannot be written, a run that does not fit into memory (the others go on);
130 interrupted by Ctrl-C. Finished runs are kept in all cases, and --resume --out DIR goes on, with a run that was cut
off from its last checkpoint (checkpoint-KEY.pt in --out).
"""


def parse(argv: Sequence[str] | None, description: str) -> TextSweep:
    """Read a command line.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.
        description: First paragraph of ``--help``.

    Returns:
        The resolved configuration.

    Raises:
        BenchmarkError: When a value is out of its range.
    """
    given = vars(parser_for(TextSweep, description, _EPILOG).parse_args(argv))
    try:
        return resolve({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
