"""The pytest plug-in: fixtures that are imported only when used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from django_cqrs.testing.flow import Flow


@pytest.fixture
def flow(db: None) -> Iterator[Flow]:  # noqa: ARG001 - it opens the database
    """Record the messages on the buses, and run channels in the test's transaction."""
    from django_cqrs.testing.flow import Flow

    with Flow() as recorded:
        yield recorded
