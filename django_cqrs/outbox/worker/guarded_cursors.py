"""
Cursors of psycopg that say what they are used for.

While a block of :class:`~django_cqrs.outbox.worker.savepoints.Savepoints` is open, a
cursor of the class that Django itself makes gets a subclass of that class:

- Until its first use it is *unused*. If that use is a plain statement, the savepoint
  goes along with it. Before any other use, even of a private attribute, the savepoint
  is set by itself.
- Then it is *watched*: it only says when a statement is not plain.

A plain statement is one that ends no transaction, whatever its parameters.

Every other cursor (one on the server, one that binds on the server, one of a tool that
traces statements) stays what it is, and opening it is a use of the connection.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from django_cqrs.statements import is_plain


class CursorGuard(Protocol):
    """Learns what cursors are used for."""

    @property
    def is_set(self) -> bool:
        """Whether the savepoint is set."""
        ...

    def touch(self) -> Any:
        """Note a use that is not a plain statement."""
        ...

    def execute(self, cursor: Any, query: str, params: Any) -> Any:
        """Execute the plain statement that is a cursor's first use."""
        ...


class CursorClasses(NamedTuple):
    """The subclasses of a class of cursors."""

    unused: type[Any]
    watched: type[Any]


def classes_of(kind: type[Any]) -> CursorClasses | None:
    """Return the subclasses for cursors of exactly this class, if it is Django's."""
    if kind not in _classes:
        _classes[kind] = _made(kind)
    return _classes[kind]


_classes: dict[type[Any], CursorClasses | None] = {}


def _made(kind: type[Any]) -> CursorClasses | None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name != "django.db.backends.postgresql.base.Cursor" or not all(
        hasattr(kind, each) for each in _NEEDED
    ):
        return None
    own: dict[str, Any] = {"__slots__": (), "_cqrs_kind": kind}
    watched = type("WatchedCursor", (_Watched, kind), own)
    unused = type("UnusedCursor", (_Unused, kind), {**own, "_cqrs_watched": watched})
    return CursorClasses(unused, watched)


# Of psycopg 3, and its own affair: without one of them, no savepoint goes along.
_NEEDED: Final = ("mogrify", "_query", "_results", "_set_results")


def guard(cursor: Any, kind: type[Any], by: CursorGuard) -> None:
    """Make a cursor one of a guarded class, which tells `by`."""
    cursor._cqrs_guard = by
    cursor.__class__ = kind


@contextmanager
def unguarded(cursor: Any) -> Iterator[None]:
    """Let a watched cursor be one of its own class, since the driver uses it too."""
    watched = type(cursor)
    cursor.__class__ = watched._cqrs_kind
    try:
        yield
    finally:
        cursor.__class__ = watched


class _Unused:
    __slots__ = ()
    _cqrs_kind: type[Any]
    _cqrs_watched: type[Any]

    def __getattribute__(self, name: str) -> Any:
        guard = object.__getattribute__(self, "__dict__")["_cqrs_guard"]
        if name == "execute":
            return functools.partial(_execute_first, self, guard)
        self.__class__ = type(self)._cqrs_kind
        guard.touch()
        return getattr(self, name)


def _execute_first(
    cursor: Any, guard: CursorGuard, query: Any, params: Any = None, **options: Any
) -> Any:
    kind = type(cursor)
    if issubclass(kind, _Unused):
        if is_plain(query) and not options:
            cursor.__class__ = kind._cqrs_watched
            return guard.execute(cursor, query, params)
        cursor.__class__ = kind._cqrs_kind
        guard.touch()
    return cursor.execute(query, params, **options)


class _Watched:
    __slots__ = ()
    _cqrs_kind: type[Any]
    _cqrs_guard: CursorGuard

    @property
    def connection(self) -> Any:
        self._cqrs_guard.touch()
        return self._cqrs_kind.connection.__get__(self)

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        return self._run("execute", query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        return self._run("executemany", query, params_seq, **options)

    def _run(self, method: str, query: Any, *args: Any, **options: Any) -> Any:
        # It is not set if the driver has refused to send the first statement.
        if not self._cqrs_guard.is_set or not is_plain(query):
            self._cqrs_guard.touch()
        with unguarded(self):
            return getattr(self, method)(query, *args, **options)

    def stream(self, query: Any, *args: Any, **options: Any) -> Any:
        self._cqrs_guard.touch()
        self.__class__ = type(self)._cqrs_kind
        return self.stream(query, *args, **options)

    def copy(self, statement: Any, *args: Any, **options: Any) -> Any:
        self._cqrs_guard.touch()
        self.__class__ = type(self)._cqrs_kind
        return self.copy(statement, *args, **options)
