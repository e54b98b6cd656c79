from __future__ import annotations

from dataclasses import dataclass

from django_cqrs import message


@dataclass(frozen=True)
class OpenDesk:
    title: str


class DeskEvent:
    pass


@message("desk.opened")
@dataclass(frozen=True)
class DeskOpened(DeskEvent):
    desk_id: int


@dataclass(frozen=True)
class Unheard:
    pass
