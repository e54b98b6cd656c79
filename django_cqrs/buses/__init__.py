"""The three buses, and the registry that ties them to handlers."""

from __future__ import annotations

from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.events import EventBus
from django_cqrs.buses.queries import QueryBus
from django_cqrs.buses.registries import (
    Registry,
    command_bus,
    event_bus,
    query_bus,
    registry,
)

__all__ = [
    "CommandBus",
    "EventBus",
    "QueryBus",
    "Registry",
    "command_bus",
    "event_bus",
    "query_bus",
    "registry",
]
