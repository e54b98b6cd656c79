from __future__ import annotations

from dataclasses import dataclass

from queuebie.messages import Command, Event


@dataclass(kw_only=True)
class AddOne(Command):
    to: int


@dataclass(kw_only=True)
class Added(Event):
    to: int
