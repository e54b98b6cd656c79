"""The pytest plug-in: fixtures and a marker that import Django only when used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_cqrs.testing.flow import Flow
    from django_cqrs.testing.scenarios import Scenario

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


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Iterator[Callable[..., Scenario]]:
    """
    Begin scenarios of the project, or of one class.

    That of the project opens the database. After the test an exception that no
    ``raises()`` has named fails it.
    """
    from django_cqrs.testing.scenarios import scenario as begin

    begun: list[Scenario] = []

    def begin_one(cls: type | None = None, /, **options: Any) -> Scenario:
        if cls is None:
            request.getfixturevalue("db")
        begun.append(begin(cls, **options))
        return begun[-1]

    yield begin_one
    for each in begun:
        each.close()
