"""
What a unit of work writes to an object that one of its handlers holds.

A row lock keeps others out, and lets its own transaction write: a nested command, an
event that comes back, a queryset. The object that was loaded before knows nothing of
that, and its save would write old values over new ones. A watch sees such writes; the
save then raises ConcurrencyError.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary, ref

from django.core.exceptions import ValidationError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from django_cqrs.annotations import name_of_type, place_of
from django_cqrs.buses.registries import Registry
from django_cqrs.exceptions import ConcurrencyError
from django_cqrs.messages import current, scope_of
from django_cqrs.parameters.planner import method_called_in
from django_cqrs.pipeline.scopes import BusScope
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable

Image = dict[str, Any]
"""The values of a row by the names of their attributes."""


class Watch(ABC):
    """Notices who writes what an object was loaded from, while the object is held."""

    def __init__(
        self, say: Callable[[Any], str], registry: Registry, holder: str | None = None
    ) -> None:
        """
        Begin.

        Args:
            say: returns what errors call the object: ``Ticket with ticket_id=7``.
            registry: of the handlers that may be named.
            holder: the handler that is going to save it; by default the one that is
                at work when it is saved.

        """
        self._say = say
        self._registry = registry
        self.holder = holder
        self._writers: dict[str | None, Any] = {}

    def note_writer(self, proof: Any = None) -> None:
        """Remember that the handler at work writes what is watched."""
        self._writers[handler_at_work(self._registry)] = proof

    def refused(self, what: str, advice: str = "") -> ConcurrencyError:
        """
        Return the error of a save that would write over what was written.

        Args:
            what: was written, for the text.
            advice: on what else can be done.

        """
        holder = self.holder or handler_at_work(self._registry)
        others = [name or "other code" for name in self._writers if name != holder]
        who = " and ".join(others) or f"{holder} itself"
        since = f"{holder} loaded it" if holder else "it was loaded"
        return _Named(
            f"{self._say(self.instance)} was changed or deleted by {who} since "
            f"{since}, in the same unit of work: a save would overwrite {what}. This "
            "attempt saved nothing. Send after the save: record an event, give the "
            f"handler output=, or use a channel{advice}."
        )

    def update(self, update: Callable[[], None]) -> None:
        """
        Call what updates the object's row.

        Raises:
            ConcurrencyError: the row was written since the object was loaded.

        """
        self.refuse_loss()
        try:
            update()
        except ConcurrencyError as error:
            if not any(self._writers) or isinstance(error, _Named):
                raise  # the text of the storage says as much
            raise self.refused("that") from error

    @property
    @abstractmethod
    def instance(self) -> Any:
        """The object."""

    @abstractmethod
    def refuse_loss(self) -> None:
        """
        Let the object be saved, or refuse it.

        Raises:
            ConcurrencyError: the save would write over what others have written.

        """

    @abstractmethod
    def close(self) -> None:
        """End: the object is no longer held."""


class _Named(ConcurrencyError):
    """One whose text names the handlers already."""


# Logs, the journal and users know it by the public name.
_Named.__name__ = _Named.__qualname__ = ConcurrencyError.__qualname__
_Named.__module__ = ConcurrencyError.__module__


# ----------------------------------------------------------------------------- rows


class RowWatch(Watch):
    """
    Watches a row: statements that may write it are seen on their way to the database.

    It looks until it is closed, its object is gone, or the transaction has ended that
    the object was loaded in.
    """

    def __init__(
        self,
        say: Callable[[Any], str],
        registry: Registry,
        holder: str | None = None,
        *,
        instance: Any,
        connection: BaseDatabaseWrapper,
        tables: Iterable[str],
        image: Callable[[], Image | None],
        version: str | None = None,
    ) -> None:
        """
        Begin to look at the statements of a connection.

        Args:
            say: as for every watch.
            registry: likewise.
            holder: likewise.
            instance: the object.
            connection: that it was loaded by.
            tables: that the row is in, in lower case.
            image: reads the row as it is now, None where it is gone.
            version: what counts its saves, if anything does.

        """
        super().__init__(say, registry, holder)
        self._found = ref(instance)
        self._connection = connection
        self._registrys = tuple(tables)
        self._image = image
        self._version = version
        self._before: Image | None = None
        self._is_paused = False
        self._is_atomic = connection.in_atomic_block
        # The first of the list, since execute_wrapper() takes the last one away.
        connection.execute_wrappers.insert(0, self._look)

    def close(self) -> None:
        """End: the object is no longer held."""
        with suppress(ValueError):
            self._connection.execute_wrappers.remove(self._look)

    @property
    def instance(self) -> Any:
        """The object, None where it is gone."""
        return self._found()

    def refuse_loss(self) -> None:
        """Look no more where nothing was written; else look at what saves it."""
        if self._before is None and self.holder is not None:
            self.close()

    def _look(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        if self._is_paused:
            return execute(sql, params, many, context)
        instance = self.instance
        if instance is None or (
            self._is_atomic and not self._connection.in_atomic_block
        ):
            self.close()
        elif _may_write(sql, self._registrys):
            saving = _save_of(instance)
            if saving is not None:
                return self._save(saving, execute, sql, params, many, context)
            if self._before is None:
                self._before = self._read()
            self.note_writer()
        return execute(sql, params, many, context)

    def _save(
        self, values: list[tuple[Any, Any]], execute: Callable[..., Any], *rest: Any
    ) -> Any:
        """Let the object be written by its own save(), or refuse it."""
        before = self._before
        if before is None:
            return execute(*rest)
        now = self._read()
        if now is None:
            raise self.refused("the deletion")
        version, is_asked = self._version, _UPDATE_NAME in vars(self.instance)
        if version and is_asked and before[version] != now[version]:
            return execute(*rest)  # which is refused, since it asks for the version
        lost = [f.attname for f, value in values if _is_lost(f, value, before, now)]
        if lost:
            advice = ", or call refresh_from_db() before the object is changed"
            raise self.refused(" and ".join(lost), advice)
        result = execute(*rest)
        written = self._read() or {}
        names = [field.attname for field, _ in values]
        before |= {name: written[name] for name in names if name in written}
        return result

    def _read(self) -> Image | None:
        self._is_paused = True
        try:
            return self._image()
        finally:
            self._is_paused = False


class DocumentWatch(RowWatch):
    """Watches the row of a document, whose version is what refuses a loss."""

    def refuse_loss(self) -> None:
        """Look no more: what is still to be executed is the save itself."""
        self.close()


def watch_of(instance: Any, connection: BaseDatabaseWrapper) -> RowWatch | None:
    """Return what watches the row of an object, None where nothing does."""
    for wrapper in connection.execute_wrappers:
        watch = getattr(wrapper, "__self__", None)
        if isinstance(watch, RowWatch) and watch.instance is instance:
            return watch
    return None


def _may_write(sql: Any, tables: tuple[str, ...]) -> bool:
    """Return whether a statement may change or delete rows of some tables."""
    text = sql if isinstance(sql, str) else str(sql)
    if text.startswith("SELECT"):
        return False
    words = text.lstrip(" (\n\r\t").lower()
    if words.startswith("select") or not any(name in words for name in tables):
        return False
    is_plain_insert = words.startswith("insert") and not (
        "conflict" in words or "duplicate" in words
    )
    return not is_plain_insert


_UPDATE: CodeType = Model._do_update.__code__
_UPDATE_NAME = _UPDATE.co_name


def _save_of(instance: Any) -> list[tuple[Any, Any]] | None:
    """Return the fields and values that an object's save() is just writing, if any."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is _UPDATE and frame.f_locals["self"] is instance:
            values = frame.f_locals["values"]
            return [(field, value) for field, _, value in values]
        frame = frame.f_back
    return None


def _is_lost(field: Any, value: Any, before: Image, now: Image) -> bool:
    """Return whether a field was written meanwhile, and would be written over."""
    name = field.attname
    if name not in now or before.get(name) == now[name] or now[name] == value:
        return False
    # What the database computes goes on from what is there; a time of change is new.
    if hasattr(value, "resolve_expression") or getattr(field, "auto_now", False):
        return False
    try:
        return bool(field.to_python(value) != field.to_python(now[name]))
    except (ValidationError, TypeError, ValueError):
        return True


# ---------------------------------------------------------- repositories of one's own

_open: ContextVar[tuple[KeyWatch, ...]] = ContextVar("django_cqrs_watches", default=())


class KeyWatch(Watch):
    """Watches an object where only its key is known: who else keeps one under it."""

    def __init__(
        self,
        say: Callable[[Any], str],
        registry: Registry,
        holder: str | None = None,
        *,
        instance: Any,
        key: Any,
    ) -> None:
        """
        Begin.

        Args:
            say: as for every watch.
            registry: likewise.
            holder: likewise.
            instance: the object.
            key: what it is kept under, with what keeps it.

        """
        super().__init__(say, registry, holder)
        self._instance = instance
        self._key = key
        self._scope = scope_of(current.get())
        self._token = _open.set((*_open.get(), self))

    @property
    def instance(self) -> Any:
        """The object."""
        return self._instance

    def close(self) -> None:
        """End: the object is no longer held."""
        _open.reset(self._token)

    def refuse_loss(self) -> None:
        """
        Let the object be saved, or refuse it.

        Raises:
            ConcurrencyError: another object was kept under its key.

        """
        self._writers = {
            name: scopes
            for name, scopes in self._writers.items()
            if not _is_undone(scopes)
        }
        if self._writers:
            raise self.refused("that")

    def note_other(self, key: Any, instance: Any) -> None:
        """Take notice of an object that is kept, or deleted, under a key."""
        if key == self._key and instance is not self._instance:
            self.note_writer(list(self._scopes_inside()))

    def _scopes_inside(self) -> Iterator[BusScope]:
        """Yield the scopes between who writes and who holds the object."""
        scope: BusScope | None = scope_of(current.get())
        while scope is not None and scope is not self._scope:
            yield scope
            scope = scope.parent


def note_kept(key: Any, instance: Any) -> None:
    """Tell who holds another object of a key that this one is kept under it."""
    for watch in _open.get():
        watch.note_other(key, instance)


def _is_undone(scopes: Iterable[BusScope]) -> bool:
    """Return whether the writes of some scopes were rolled back with one of them."""
    return any(scope.is_dropped for scope in scopes)


# ------------------------------------------------------------------- who is at work


_KEEPING: CodeType = Watch.update.__code__


def handler_at_work(registry: Registry) -> str | None:
    """Return the name of the innermost handler that is being called, None for none."""
    names = _names_of(registry)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        method = method_called_in(frame)
        if method is not None:
            return name_of_method(*method)
        if frame.f_code is _KEEPING and frame.f_locals["self"].holder is not None:
            return str(frame.f_locals["self"].holder)  # its method has returned
        if frame.f_code in names:
            return names[frame.f_code]
        frame = frame.f_back
    return None


def name_of_method(owner: type, name: str) -> str:
    """Return what errors call a method that is a handler: ``Ticket.assign``."""
    return f"{name_of_type(owner)}.{name}"


def called_by(endpoint: Endpoint) -> str:
    """Return what errors call a handler: as a method, or by a function's path."""
    acting = endpoint.action or endpoint
    if acting.owner is None:
        return place_of(acting.function)
    return name_of_method(acting.owner, acting.function.__name__)


_names: WeakKeyDictionary[RouteTable, dict[CodeType, str]] = WeakKeyDictionary()


def _names_of(registry: Registry) -> dict[CodeType, str]:
    """Return the names of handlers by what is run of them."""
    table = registry.routes
    names = _names.get(table)
    if names is None:
        names = _names[table] = {
            inspect.unwrap(each.function).__code__: called_by(each)
            for each in table.endpoints
        }
    return names
