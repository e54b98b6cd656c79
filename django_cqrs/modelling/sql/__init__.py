"""Methods that are one SQL statement each."""

from __future__ import annotations

from django_cqrs.modelling.sql.decorators import Json, sql_query, sql_write

__all__ = [
    "Json",
    "sql_query",
    "sql_write",
]
