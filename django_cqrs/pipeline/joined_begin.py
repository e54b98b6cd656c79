"""
BEGIN in one round trip with the first statement of a command, on PostgreSQL.

psycopg 3 sends BEGIN by itself before the first statement of a transaction. A server
that is a millisecond away makes that a millisecond of each command. The two are sent
together where both certainly have the same effect as one after the other: for one
plain statement, or several that say so, by a cursor of the class that Django itself
makes. Every other use of the connection (COPY, many parameters, a cursor on the server,
one of a tool that traces statements, the driver's own) lets psycopg send its BEGIN
first, as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.statements import PlainStatements, is_plain

_joining: dict[type[Any], type[Any] | None] = {}


def join_begin(connection: BaseDatabaseWrapper) -> None:
    """
    Let the next statement take along the BEGIN of the transaction that it starts.

    It does nothing if there is no such transaction, or the driver cannot do it.

    Args:
        connection: with an open ``atomic()``, of any database.

    """
    driver: Any = connection.connection
    kind = getattr(driver, "cursor_factory", None)
    if kind is None:
        return
    if kind not in _joining:
        _joining[kind] = _made(kind)
    joining = _joining[kind]
    if joining is not None and _is_begun_by_next(driver):
        driver.cursor_factory = joining


# Of psycopg 3, and its own affair: without one of them, BEGIN goes alone.
_OF_CURSOR: Final = ("_execute_gen", "_execute_send", "_set_results", "_conn")
_OF_DRIVER: Final = ("_autocommit", "_get_tx_start_command", "_pipeline", "pgconn")
_IDLE: Final = 0
_TEXT: Final = 0


def _is_begun_by_next(driver: Any) -> bool:
    """Return whether psycopg sends a BEGIN before the next statement."""
    return (
        all(hasattr(driver, each) for each in _OF_DRIVER)
        and not driver._autocommit
        and driver._pipeline is None
        and driver.pgconn.transaction_status == _IDLE
    )


def _made(kind: type[Any]) -> type[Any] | None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name != "django.db.backends.postgresql.base.Cursor" or not all(
        hasattr(kind, each) for each in _OF_CURSOR
    ):
        return None
    return type("JoiningCursor", (_Joining, kind), {"_cqrs_kind": kind})


class _Joining:
    """The first statement of such a cursor has the BEGIN before it, in its text."""

    _cqrs_kind: type[Any]
    _cqrs_begin = b""

    _conn: Any
    _pgconn: Any
    _query: Any
    format: int

    def _execute_gen(
        self, query: Any, params: Any = None, **options: Any
    ) -> Iterator[Any]:
        own: Any = super()
        driver, execute = self._conn, own._execute_gen
        if driver.cursor_factory is type(self):
            driver.cursor_factory = self._cqrs_kind
        if not (
            (is_plain(query) or type(query) is PlainStatements)
            and self.format == _TEXT
            and not options.get("binary")
            and _is_begun_by_next(driver)
        ):
            yield from execute(query, params, **options)
            return
        self._cqrs_begin = driver._get_tx_start_command()
        driver._autocommit = True  # so that psycopg sends none
        try:
            yield from execute(query, params, **options)
        except Exception:
            if driver.pgconn.transaction_status != _IDLE:
                raise
            # The server could not read the statement, or the driver not write it, so
            # nothing was begun. Alone, the statement fails inside a transaction, which
            # then refuses what comes after it.
            self._cqrs_begin, driver._autocommit = b"", False
            yield from execute(query, params, **options)
        finally:
            self._cqrs_begin, driver._autocommit = b"", False

    def _execute_send(self, query: Any, **options: Any) -> None:
        begin = self._cqrs_begin
        if not begin:
            own: Any = super()
            own._execute_send(query, **options)
            return
        self._query = query
        # On a line of its own: errors show the line of the statement.
        self._pgconn.send_query(begin + b";\n" + query.query)

    def _set_results(self, results: list[Any]) -> None:
        if self._cqrs_begin:
            results = results[1:]
        own: Any = super()
        own._set_results(results)
