"""Commands, queries and events for Django: the front door."""

from __future__ import annotations

from django_cqrs.buses import (
    CommandBus,
    EventBus,
    QueryBus,
    Registry,
    command_bus,
    event_bus,
    query_bus,
)
from django_cqrs.declarations import (
    command_handler,
    event_handler,
    query_handler,
    service,
)
from django_cqrs.masking import Sensitive
from django_cqrs.messages import Command, Headers, Message, Query, message
from django_cqrs.modelling import Fetch, Identifier, Version
from django_cqrs.parameters import Depends, Header, Service
from django_cqrs.retries import DEADLOCKS, InstantRetry, Retry

__all__ = [
    "DEADLOCKS",
    "Command",
    "CommandBus",
    "Depends",
    "EventBus",
    "Fetch",
    "Header",
    "Headers",
    "Identifier",
    "InstantRetry",
    "Message",
    "Query",
    "QueryBus",
    "Registry",
    "Retry",
    "Sensitive",
    "Service",
    "Version",
    "command_bus",
    "command_handler",
    "event_bus",
    "event_handler",
    "message",
    "query_bus",
    "query_handler",
    "service",
]
