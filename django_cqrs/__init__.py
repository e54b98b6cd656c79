"""Commands, queries and events for Django: the public interface."""

from __future__ import annotations

from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.events import EventBus
from django_cqrs.buses.queries import QueryBus
from django_cqrs.buses.receipts import Receipt
from django_cqrs.buses.registries import Registry, command_bus, event_bus, query_bus
from django_cqrs.conversion.masking import Sensitive
from django_cqrs.declaration.decorators import (
    command_handler,
    event_handler,
    query_handler,
    service,
)
from django_cqrs.declaration.marks import Depends, Header, Service
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.messages import Command, Headers, Message, Query, message
from django_cqrs.modelling import Fetch, Identifier, Version
from django_cqrs.retries import DEADLOCKS, InstantRetry, Retry
from django_cqrs.sends import Send

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
    "MessageGaveUp",
    "Query",
    "QueryBus",
    "Receipt",
    "Registry",
    "Retry",
    "Send",
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
