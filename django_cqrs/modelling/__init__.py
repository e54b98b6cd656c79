"""Domain objects: found by their identifier, changed by messages."""

from __future__ import annotations

from django_cqrs.modelling import model_storage  # noqa: F401 - registers itself
from django_cqrs.modelling.aggregates import aggregate
from django_cqrs.modelling.identifiers import Identifier, Version
from django_cqrs.modelling.interfaces.decorators import (
    business_interface,
    business_method,
)
from django_cqrs.modelling.interfaces.implementing import implement
from django_cqrs.modelling.repositories import Fetch, Repository
from django_cqrs.modelling.sagas import Saga, saga
from django_cqrs.modelling.sql.decorators import Json, sql_query, sql_write

__all__ = [
    "Fetch",
    "Identifier",
    "Json",
    "Repository",
    "Saga",
    "Version",
    "aggregate",
    "business_interface",
    "business_method",
    "implement",
    "saga",
    "sql_query",
    "sql_write",
]
