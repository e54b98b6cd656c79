from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenTicket:
    title: str = ""


@dataclass(frozen=True, slots=True)
class FindTickets:
    title: str = ""


@dataclass(frozen=True, slots=True)
class TicketOpened:
    title: str = ""
