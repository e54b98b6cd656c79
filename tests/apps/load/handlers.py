"""Each request leaves three notes, written by three handlers, with its own header."""

from __future__ import annotations

import asyncio
from typing import Annotated

from django_cqrs import (
    CommandBus,
    EventBus,
    Header,
    command_handler,
    event_handler,
    query_handler,
)
from tests.apps.load.messages import ARecord, Confirm, Count, Record, Recorded
from tests.testapp.models import Note

Request = Annotated[str, Header("request")]


class Refused(Exception):
    """What every tenth request comes to."""


@command_handler
def record(command: Record, request: Request, events: EventBus) -> str:
    Note.objects.create(text=request, number=command.number, slug=f"{request} record")
    events.publish(Recorded(command.number, command.fails))
    return request


@command_handler
async def record_async(command: ARecord, request: Request, events: EventBus) -> str:
    await Note.objects.acreate(
        text=request, number=command.number, slug=f"{request} record"
    )
    await asyncio.sleep(0.001)
    await events.apublish(Recorded(command.number, command.fails))
    return request


@event_handler
def confirm_recorded(event: Recorded, commands: CommandBus, request: Request) -> None:
    commands.dispatch(Confirm(event.number))
    Note.objects.create(text=request, number=event.number, slug=f"{request} event")
    if event.fails:
        raise Refused


@command_handler
async def confirm(command: Confirm, request: Request) -> None:
    await Note.objects.acreate(
        text=request, number=command.number, slug=f"{request} nested"
    )


@query_handler
def count(query: Count) -> int:
    return Note.objects.count()
