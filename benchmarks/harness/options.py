"""Options declared once, as dataclass fields that carry their own command-line flag."""

from __future__ import annotations

import argparse
from dataclasses import field, fields
from typing import Any

CHECKPOINTS = (
    "between checkpoints, from which --resume goes on after a crash; 0: none; unset: by time, at most one a minute and "
    "for at most 1 %% of the time"
)


def option(default: Any, help: str, **parser: Any) -> Any:
    """A dataclass field that also carries its command-line help; `parser` goes to ``add_argument``."""
    return field(default=default, metadata={"help": help, "parser": parser})


def parser_for(options: type, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose namespace holds only what was given, so that presets can fill the rest.

    Args:
        options: Dataclass with a flag a field.
        description: First paragraph of ``--help``.
        epilog: Its last one, line breaks kept.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, options)
    return parser


def flags(preset: dict[str, Any]) -> str:
    """A preset as it would be written on the command line; a switch that is on stands for itself."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {words(value)}") for name, value in preset.items()
    )


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """One flag per field of the dataclass `options`; the namespace will hold only what was given.

    So presets can fill the rest.  The action ``boolean`` stands for ``--flag`` and ``--no-flag``.
    """
    for one in fields(options):
        arguments = dict(one.metadata["parser"])
        if arguments.get("action") == "boolean":
            arguments["action"] = argparse.BooleanOptionalAction
        bare = arguments.get("action") == "store_true" or one.default is None
        shown = "" if bare else f" (default: {words(one.default)})".replace("%", "%%")
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=one.metadata["help"] + shown,
            **arguments,
        )


def words(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(words, value))
    return "none" if value is None else str(value)


def check(name: str, holds: bool, rule: str, value: object, advice: str) -> None:
    """Raise the ValueError that an option's rule asks for where it does not hold."""
    if not holds:
        raise ValueError(f"'{name}' must {rule} (got {value!r}). {advice}")


def check_checkpoints(every: int | None) -> None:
    """Raise the ValueError for a number that ``--checkpoint-every`` cannot take."""
    holds = every is None or every >= 0
    check("checkpoint_every", holds, "not be negative", every, "0 writes none; leave it out to go by time.")
