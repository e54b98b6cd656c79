"""How far the claims of a worker have come in each channel."""

from __future__ import annotations

import time
from typing import NamedTuple


class Position(NamedTuple):
    """The place of a message in the order of its channel."""

    priority: int
    sequence: int


class Fronts:
    """
    The places behind which a worker goes on claiming.

    While any transaction stays open for long, PostgreSQL keeps the rows that were
    deleted since it began, and a claim from the beginning reads all of them again. So
    one goes on where the claim before it has ended, unless a message with a higher
    priority is ready.

    Messages may become ready before that place: those of a transaction that committed
    late, those that fell due, and those that somebody has given back. They are claimed
    as soon as a claim looks from the beginning again: at the latest after
    :attr:`look_time`, when there are fewer messages behind the place than were wanted,
    and when this worker itself has made messages ready.
    """

    # The maximum time in which claims do not look from the beginning, in seconds.
    look_time = 1.0

    def __init__(self) -> None:
        """Begin at the beginning of each channel."""
        self._places: dict[str, tuple[Position, float]] = {}

    def place(self, channel: str) -> Position | None:
        """Return the place to go on from; None: from the beginning."""
        if channel not in self._places:
            return None
        place, looked = self._places[channel]
        return place if time.monotonic() - looked < self.look_time else None

    def note(self, channel: str, last: Position, *, is_from_beginning: bool) -> None:
        """Note the last message of a claim that found as many as it wanted."""
        if is_from_beginning:
            looked = time.monotonic()
        else:
            _, looked = self._places[channel]
        self._places[channel] = last, looked

    def forget(self, channel: str | None = None) -> None:
        """Begin again in one channel, or in all."""
        if channel is None:
            self._places.clear()
        else:
            self._places.pop(channel, None)
