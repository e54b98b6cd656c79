from __future__ import annotations

import pytest

from tests.events.projections.support import broken


@pytest.fixture(autouse=True)
def _nothing_broken() -> None:
    """Leave no event broken that another test, of whatever module, has broken."""
    broken.clear()
