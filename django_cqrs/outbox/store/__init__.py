"""The statements on the outbox's table: insert, claim, settle, release and bury."""

from __future__ import annotations

from django_cqrs.outbox.store.dead_letters import discard, put_back, replay
from django_cqrs.outbox.store.rows import Claimed
from django_cqrs.outbox.store.settlement import LeaseLost
from django_cqrs.outbox.store.store import Store

__all__ = [
    "Claimed",
    "LeaseLost",
    "Store",
    "discard",
    "put_back",
    "replay",
]
