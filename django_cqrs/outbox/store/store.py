"""The outbox of one database."""

from __future__ import annotations

from django_cqrs.outbox.store.forwarding import Forwarding
from django_cqrs.outbox.store.settlement import Settlement


class Store(Forwarding, Settlement):
    """The outbox of one database: what a worker, a relay and the admin ask of it."""
