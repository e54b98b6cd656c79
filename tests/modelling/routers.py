from __future__ import annotations


class TicketsElsewhere:
    """Keeps tickets in the other database."""

    def db_for_read(self, model, **hints):
        return "other" if model.__name__ == "Ticket" else None

    db_for_write = db_for_read
