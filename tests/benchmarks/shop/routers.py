"""Where the models of the shop are kept that are called by messages."""

from __future__ import annotations

from typing import Any

from django.db import connections

ALIAS = "postgres"


class ServerRouter:
    """Sends aggregates and sagas to the server, where one is given."""

    def db_for_read(self, model: Any, **_hints: Any) -> str | None:
        """Return the alias of the server for those, None for all others."""
        is_meant = model._meta.label_lower in SERVED and ALIAS in connections
        return ALIAS if is_meant else None

    db_for_write = db_for_read


SERVED = frozenset({"benchmarks_shop.book", "benchmarks_shop.dispatch"})
