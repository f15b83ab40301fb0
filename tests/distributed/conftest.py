"""Starts the distributed jobs that the chosen tests ask about, once."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Job, run

Outcomes = dict[tuple[str, int, str], dict[str, list[str]]]


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """How the checks of the chosen tests ended, by module, number of ranks and backend."""
    asked: dict[tuple[str, int, str], list[str]] = {}
    for item in request.session.items:
        if "outcomes" in getattr(item, "fixturenames", ()):
            job = item.callspec.params["job"]
            asked.setdefault(job[:3], []).append(job[3])
    jobs = [Job(module, size, tuple(checks), backend) for (module, size, backend), checks in asked.items()]
    ended = run(jobs, tmp_path_factory.mktemp("ranks"), request.config.rootpath)
    return {(job.module, job.world_size, job.backend): ended[job] for job in jobs}
