"""The outbox of one database."""

from __future__ import annotations

from django_cqrs.outbox.store.forwarding import Forwarding
from django_cqrs.outbox.store.settlement import Settlement


class Store(Forwarding, Settlement):
    """The outbox of one database, as workers, relays and the admin use it."""
