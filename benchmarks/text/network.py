"""Whether the hub may be asked: its own clients try for most of a minute before they say that it may not."""

from __future__ import annotations

from types import ModuleType

from benchmarks.harness.errors import BenchmarkError, require

_TIMEOUT_S = 5


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set."""
    return bool(_hub().constants.HF_HUB_OFFLINE)


def check_reachable(argument: str, name: str, instead: str) -> None:
    """Ask the hub for its front page, once, through the proxies and the endpoint that its clients use.

    Args:
        argument: What needs it.
        name: What is wanted of it.
        instead: What to do without.

    Raises:
        BenchmarkError: When ``HF_HUB_OFFLINE`` is set, or there is no answer.
    """
    if is_offline():
        raise BenchmarkError(
            f"'{argument}' must be on this machine while HF_HUB_OFFLINE is set (got '{name}', not in the hub's cache). "
            f"{instead} Or unset HF_HUB_OFFLINE."
        )
    endpoint = _hub().constants.ENDPOINT
    try:
        _hub().get_session().head(endpoint, timeout=_TIMEOUT_S)
    except Exception as error:  # the client's library differs from version to version, and so do its errors
        raise BenchmarkError(
            f"'{argument}' must be on the hub, and the hub in reach (got '{name}'; {endpoint}: {error}). "
            f"{instead} With a copy in the hub's cache, set HF_HUB_OFFLINE=1."
        ) from error


def _hub() -> ModuleType:
    return require("huggingface_hub", extras="benchmarks,transformers")
