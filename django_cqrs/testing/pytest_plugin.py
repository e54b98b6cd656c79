"""The pytest plug-in: fixtures and a marker that import Django only when used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from django_cqrs.testing.flow import Flow

MARKER = "cqrs_eager"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, for ``--strict-markers`` and ``pytest --markers``."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}: handle the messages of every channel of django_cqrs inside the "
        "sender's transaction",
    )


@pytest.fixture(autouse=True)
def _cqrs_eager(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the channels immediate in a test with the marker, its fixtures included."""
    if request.node.get_closest_marker(MARKER) is None:
        yield
        return
    from django_cqrs.testing.flow import eager_channels

    with eager_channels():
        yield


@pytest.fixture
def flow(db: None) -> Iterator[Flow]:  # noqa: ARG001 - it opens the database
    """Record the messages on the buses, and run channels in the test's transaction."""
    from django_cqrs.testing.flow import Flow

    with Flow() as recorded:
        yield recorded
