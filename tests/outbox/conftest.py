from __future__ import annotations

import pytest

from django_cqrs.outbox.worker.batch import Habits
from django_cqrs.outbox.worker.handling import ClaimHandler
from tests.limits import LIMIT


@pytest.fixture
def undivided_batches(monkeypatch):
    """
    Keep together what was claimed together, for tests that look at one transaction.

    A worker divides what takes long, and on a busy machine a handler that does nothing
    may take long.
    """
    monkeypatch.setattr(ClaimHandler, "transaction_time", LIMIT)
    monkeypatch.setattr(Habits, "slow_time", LIMIT)
