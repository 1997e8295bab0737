"""What every test is held to: quiet logs, nothing left mounted, long runs only when asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

KVFS_LOGGERS = ("kvfs", "kvfs_gateway", "kvfs_tools")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", action="store_true", default=False, help="run the long tests (marker: soak)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Bound what Hypothesis tries; the long profile comes with --soak.

    No deadline (a busy machine is no bug) and no example database (a run leaves nothing behind).
    A test that costs more than a millisecond an example takes its share of `max_examples`.
    """
    quiet = (HealthCheck.too_slow, HealthCheck.data_too_large)
    for name, count in (("bounded", 100), ("long", 5000)):
        settings.register_profile(
            name, deadline=None, database=None, max_examples=count, suppress_health_check=quiet
        )
    settings.load_profile("long" if config.getoption("--soak") else "bounded")


@pytest.hookimpl(tryfirst=True)  # before `-m soak` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long runs out, visibly, unless --soak was given; then those that only go on longer
    belong to them."""
    if config.getoption("--soak"):
        for item in items:
            if "is_soak" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.soak)
        return
    skip = pytest.mark.skip(reason="a long run: give --soak, or run `make soak`")
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def is_soak(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long run; a bounded test may use it to choose its count."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(autouse=True)
def _unexpected_warnings_fail(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A WARNING of ours that no test announced is a failure nobody looked at."""
    yield
    if request.node.get_closest_marker("expects_warnings") is not None:
        return
    loud = [
        record.getMessage()
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.levelno >= logging.WARNING and record.name.split(".")[0] in KVFS_LOGGERS
    ]
    assert not loud, f"unexpected warnings in the log (mark the test expects_warnings?): {loud}"


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays_mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    own = f"{tmp_path_factory.getbasetemp()}/"
    lines = Path("/proc/self/mounts").read_text().splitlines()
    left = sorted(point for line in lines if (point := line.split()[1]).startswith(own))
    assert not left, f"mounted by a test and left behind: {left}"
