"""A fetched model has its own type, with the plug-in of django-stubs as without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, assert_type

from django_cqrs import Fetch, command_handler
from tests.testapp.models import Note


@dataclass
class Close:
    note_id: int


# Written in place, the plug-in takes Fetch(...) for a type and refuses it.
ClosedNote = Annotated[Note, Fetch("note_id")]


@command_handler
def close(command: Close, note: ClosedNote) -> None:
    assert_type(note, Note)


@command_handler("note.find")
def find(command: Close, note: Annotated[Note | None, Fetch("note_id")]) -> None:
    assert_type(note, Note | None)
