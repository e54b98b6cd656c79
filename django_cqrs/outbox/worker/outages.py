"""
Outages: failures that would hit any other message alike.

A full disk, or a database that is read-only or unavailable, fails every message of a
channel. Within a minute their attempts would be used up, and all of them dead letters.
So the channel pauses: the message waits, its attempt is not counted, and one message at
a time is tried at growing intervals until one of the failed handlers succeeds.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from django.db import DatabaseError, InterfaceError, OperationalError
from django.db import Error as DatabaseException
from django.db import connections as all_connections

from django_cqrs.retries import DEADLOCKS

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries of a paused channel, at first and at most."""

ALIKE: Final = 5
"""The number of like failures in a row, of several endpoints, that are an outage."""

OWN: Final = 3
"""The number of outages ended by its endpoint after which a failure is its own."""

_SIGNS: Final = frozenset(
    {
        # PostgreSQL: out of disk, memory, connections; read-only; an error of the disk.
        *("53000", "53100", "53200", "53300", "25006", "58000", "58030"),
        # MySQL and MariaDB: likewise.
        *("mysql:3", "mysql:1021", "mysql:1040", "mysql:1041", "mysql:1114"),
        *("mysql:1203", "mysql:1792", "mysql:1836"),
        # The operating system: likewise, and out of files.
        *("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE"),
    }
)
_SQLITE_SIGNS: Final = (
    "SQLITE_FULL",
    "SQLITE_READONLY",
    "SQLITE_IOERR",
    "SQLITE_CANTOPEN",
)
# Numbers that mean an outage only together with a word.
_MYSQL_WORDS: Final = {1290: "read", 1030: "28"}
_EXTERNAL: Final = (OperationalError, InterfaceError, OSError)
_MYSQL_DRIVERS: Final = ("pymysql", "MySQLdb")
# Errors that waiting cannot fix: a missing table, column or privilege.
_LASTING_STATES: Final = frozenset({"42P01", "42703", "42501", "3F000"})
_LASTING_CODES: Final = frozenset({1142, 1143, 1146, 1054})
_MISSING_STATES: Final = frozenset({"42P01", "42703"})
_MISSING_CODES: Final = frozenset({1146, 1054})


def is_outage(error: BaseException) -> bool:
    """Return whether a failure by itself shows that every message would fail."""
    return any(map(_is_sign, _signs(error))) or _is_away(error)


def is_of_database(error: BaseException) -> bool:
    """Return whether an error of the outbox's own database may pass with time."""
    if not isinstance(error, DatabaseException) or is_lasting(error):
        return False
    is_of_server = isinstance(error, (OperationalError, InterfaceError))
    return is_of_server or any(map(_is_sign, _signs(error)))


def is_lasting(error: BaseException) -> bool:
    """Return whether a table, a column or a privilege is missing in a database."""
    return _says(error, _LASTING_STATES, _LASTING_CODES)


def is_not_migrated(error: BaseException) -> bool:
    """Return whether a table or a column is missing in a database."""
    return _says(error, _MISSING_STATES, _MISSING_CODES)


def _says(error: BaseException, states: frozenset[str], codes: frozenset[int]) -> bool:
    if not isinstance(error, DatabaseException):
        return False
    driver = error.__cause__
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    if state is not None and state in states:
        return True
    if getattr(driver, "sqlite_errorname", None) is not None:
        return str(error).startswith(("no such table", "no such column"))
    # A MySQL server's number says more than its SQLSTATE, which PyMySQL adds.
    return bool(error.args) and error.args[0] in codes


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes, contexts and group members."""
    todo, seen = [error], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            todo += each.exceptions
        before = each.__cause__
        if before is None and not each.__suppress_context__:
            before = each.__context__
        if before is not None:
            todo.append(before)


def _signs(error: BaseException) -> Iterator[str]:
    """Yield the error codes of a server, of SQLite, of the operating system."""
    for each in _chain(error):
        for name in ("sqlstate", "pgcode", "sqlite_errorname"):
            found = getattr(each, name, None)
            if isinstance(found, str):
                yield found
        if isinstance(each, OSError) and each.errno is not None:
            yield errno.errorcode.get(each.errno, "")
        number = each.args[0] if each.args else None
        is_mysql = type(each).__module__.partition(".")[0] in _MYSQL_DRIVERS
        if type(number) is int and (is_mysql or isinstance(each, DatabaseError)):
            word = _MYSQL_WORDS.get(number)
            is_told = word is not None and word in str(each.args[1:])
            yield "ENOSPC" if is_told else f"mysql:{number}"


def _is_sign(sign: str) -> bool:
    return sign in _SIGNS or sign.startswith(_SQLITE_SIGNS)


def _is_away(error: BaseException) -> bool:
    """Return whether a connection was lost and cannot be opened again."""
    if not any(
        isinstance(each, (OperationalError, InterfaceError)) for each in _chain(error)
    ):
        return False
    for connection in all_connections.all(initialized_only=True):
        if connection.in_atomic_block:
            continue  # other code owns this transaction, so reconnecting is not ours
        if not connection.errors_occurred:
            continue  # the handler has not queried this database
        try:
            if connection.connection is not None and not connection.is_usable():
                connection.close()
            connection.ensure_connection()
        except DatabaseException:
            return True
    return False


def _likeness(error: BaseException) -> tuple[str, ...] | None:
    """Return the traits by which failures are alike; None if it cannot be an outage."""
    if not any(isinstance(each, _EXTERNAL) for each in _chain(error)):
        return None
    if DEADLOCKS.includes(error):
        return None
    kind = type(error)
    return kind.__module__, kind.__qualname__, *_signs(error)


@dataclasses.dataclass(slots=True)
class Outage:
    """One outage of one channel, as this worker sees it; times are of its clock."""

    channel: str
    cause: str
    """The endpoint that failed first."""
    since: float
    likeness: tuple[str, ...] | None
    pause: float = FIRST_PAUSE
    next_try: float = 0.0
    endpoints: set[str] = dataclasses.field(default_factory=set)
    """The endpoints that failed: their messages wait for the next try."""
    messages: set[int] = dataclasses.field(default_factory=set)
    is_partial: bool = False
    """Whether other endpoints work, so that the rest of the channel continues."""
    said: str = ""
    """The first failure in one line, without sensitive data."""
    is_reported: bool = False
    """Whether it has been logged."""

    def rests_at(self, now: float) -> bool:
        """Return whether the whole channel rests at that time."""
        return not self.is_partial and now < self.next_try


class Outages:
    """The outages of one worker's channels."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Start without an outage.

        Args:
            clock: returns seconds that never decrease.

        """
        self.clock = clock
        self.now: dict[str, Outage] = {}
        """The current outages, by channel."""
        self.row: dict[str, dict[int, tuple[str, tuple[str, ...]]]] = {}
        """The failures in a row that may be the start of an outage, by channel."""
        self._own: Counter[int] = Counter()

    def limit(self, channel: str, wanted: int) -> int:
        """Return the number of messages to claim: none, one as a try, or all."""
        outage = self.now.get(channel)
        if outage is None or outage.is_partial:
            return wanted
        return 0 if outage.rests_at(self.clock()) else min(1, wanted)

    def rests(self, channel: str) -> bool:
        """Return whether a channel rests now."""
        outage = self.now.get(channel)
        return outage is not None and outage.rests_at(self.clock())

    def seconds_left(self, channel: str) -> float:
        """Return the seconds that a message hit by an outage must wait."""
        outage = self.now.get(channel)
        return FIRST_PAUSE if outage is None else outage.next_try - self.clock()

    def sets_aside(self, channel: str, endpoint: str, key: int) -> bool:
        """Return whether to skip a message, because its endpoint has just failed."""
        outage = self.now.get(channel)
        return (
            outage is not None
            and endpoint in outage.endpoints
            and self._own[key] < OWN
            and self.clock() < outage.next_try
        )

    def hits(
        self, channel: str, endpoint: str, key: int, error: BaseException
    ) -> Outage | None:
        """
        Note a failure.

        Args:
            channel: of the message.
            endpoint: that failed.
            key: the id of the message's row.
            error: the exception.

        Returns:
            The outage, if it is one; None if the failure is the message's own.

        """
        if self._own[key] >= OWN:
            return None
        likeness, now = _likeness(error), self.clock()
        outage = self.now.get(channel)
        is_alike = (
            outage is not None
            and outage.likeness is not None
            and (outage.likeness == likeness)
        )
        if not is_alike and not is_outage(error):
            if likeness is None or not self._is_everybodys(
                channel, endpoint, key, likeness
            ):
                return None
            is_alike = True
        if outage is None:
            outage = self.now[channel] = Outage(
                channel, endpoint, now, likeness if is_alike else None
            )
        elif key in outage.messages or not outage.rests_at(now):
            outage.pause = min(LONGEST_PAUSE, outage.pause * 2)
        outage.next_try = now + outage.pause
        outage.is_partial = outage.is_partial and endpoint in outage.endpoints
        outage.endpoints.add(endpoint)
        outage.messages.add(key)
        self.row.pop(channel, None)
        return outage

    def _is_everybodys(
        self, channel: str, endpoint: str, key: int, likeness: tuple[str, ...]
    ) -> bool:
        row = self.row.setdefault(channel, {})
        if any(each != likeness for _, each in row.values()):
            row.clear()
        row[key] = endpoint, likeness
        return len(row) >= ALIKE and len({each for each, _ in row.values()}) > 1

    def works(self, channel: str, endpoints: set[str]) -> Outage | None:
        """
        Note that messages were handled.

        Args:
            channel: of the messages.
            endpoints: the endpoints that handled them.

        Returns:
            The outage that this ends, if any.

        """
        self.row.pop(channel, None)
        outage = self.now.get(channel)
        if outage is None:
            return None
        if not endpoints & outage.endpoints:
            outage.is_partial = True
            return None
        del self.now[channel]
        self._own.update(outage.messages)
        return outage
