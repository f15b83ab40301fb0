"""Which tests run where, and which of them may be skipped.

Tests marked `slow` and `network` wait for `-m`; those marked `cuda` run wherever there is a CUDA device.
With `--fail-on-skip` any other skip fails the run: a skipped test proves nothing and is easy to overlook.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is imported. Workers share the cores already; two threads each would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if not any(Path("/dev").glob("nvidia[0-9]*")):
    # Read when a kernel is defined, and by Triton's own library when it is imported: before any other conftest.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same few matrices in every run, or, with `--hypothesis-profile=thorough`, many that nobody saw before. Tests ask
# for a share of them (tests/examples.py).
PHASES = [phase for phase in Phase if phase != Phase.explain]
settings.register_profile("few", max_examples=100, deadline=None, derandomize=True, phases=PHASES)
settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("few")

NEEDS_CUDA = "needs CUDA"
ALLOWED_REASONS = (
    NEEDS_CUDA,
    "torch-scatter is not installed",
    "torch-sparse is not installed",
    "pymetis is not installed",
    "there is no C compiler",
)
_HANDED_OVER = "skips without an allowed reason"


def is_worker(config: pytest.Config) -> bool:
    """Whether this is a process that pytest-xdist started (`-n 2`)."""
    return hasattr(config, "workerinput")


def cuda_is_available() -> bool:
    import torch  # here, so that runs without cuda tests start without it

    return torch.cuda.is_available()


class SkipPolicy:
    """Collects the skips that nothing excuses and turns them into a failed run.

    With pytest-xdist, what is skipped in collection is known to the workers alone: they hand it to the main process,
    which hears of skipped tests as it does without workers.
    """

    def __init__(self) -> None:
        self.offenders: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):  # an expected failure did run
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_REASONS):
            self.offenders.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that crashed has no output; it fails the run by itself.
        handed_over = getattr(node, "workeroutput", {}).get(_HANDED_OVER, [])
        self.offenders += [offender for offender in handed_over if offender not in self.offenders]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if is_worker(session.config):
            session.config.workeroutput[_HANDED_OVER] = self.offenders
            return
        harmless = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.offenders and session.exitstatus in harmless:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.offenders:
            terminalreporter.section("skipped without an allowed reason", red=True)
            for offender in self.offenders:
                terminalreporter.line(offender)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help=f"fail when a test is skipped for any reason but: {', '.join(ALLOWED_REASONS)}",
    )

    parser.addoption(
        "--sketch-file",
        metavar="FILE",
        help="hold the families in the dictionary CASES of this file to the laws of tests/sketches, too; "
        "the file has to register them; -k given runs these alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--sketch-file"):
        from tests.sketches import cases

        cases.add_cases_of(config.getoption("--sketch-file"))
    if config.getoption("--fail-on-skip"):
        config.pluginmanager.register(SkipPolicy(), "skip-policy")
    # The default expression stands in pyproject.toml. One given on the command line is taken as it is.
    given = any(argument.startswith("-m") for argument in config.invocation_params.args)
    if not given and "not cuda and " in config.option.markexpr and cuda_is_available():
        config.option.markexpr = config.option.markexpr.replace("not cuda and ", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not cuda_is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NEEDS_CUDA))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random numbers, whichever ran before it."""
    torch = sys.modules.get("torch")
    if hasattr(torch, "manual_seed"):  # a test of this file stands in another one
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _plain_torch(request: pytest.FixtureRequest) -> None:
    """The case `count_sketch-torch` holds the code to the laws that runs where no kernels were compiled."""
    if "count_sketch-torch" in request.node.name:
        request.getfixturevalue("monkeypatch").setattr("rmm_gnn.kernels.native.is_built", lambda: False)


@pytest.fixture(autouse=True, scope="session")
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _small_heap(_thaw: None) -> None:
    """Memory reports, and so plans, collect garbage: what is there when a module begins need not be searched again."""
    gc.collect()
    gc.freeze()
