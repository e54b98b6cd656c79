"""
Watches of foreign writes to an object that a handler holds.

A row lock keeps others out, but not its own transaction: a nested command, an event
that comes back, a queryset. The loaded object does not see such writes, and saving it
would overwrite them with old values. A watch notices them; the save then raises
ConcurrencyError.
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
"""The values of a row by attribute name."""


class Watch(ABC):
    """Notices writes to the source of an object while the object is held."""

    def __init__(
        self, say: Callable[[Any], str], registry: Registry, holder: str | None = None
    ) -> None:
        """
        Start watching.

        Args:
            say: returns an object's name in errors: ``Ticket with ticket_id=7``.
            registry: the registry of the handlers that may be named.
            holder: the handler that will save it; by default the one that is running
                when it is saved.

        """
        self._say = say
        self._registry = registry
        self.holder = holder
        self._writers: dict[str | None, Any] = {}

    def note_writer(self, proof: Any = None) -> None:
        """Note that the running handler writes the watched object."""
        self._writers[handler_at_work(self._registry)] = proof

    def refused(self, what: str, advice: str = "") -> ConcurrencyError:
        """
        Return the error of a save that would overwrite other writes.

        Args:
            what: the thing that was written, for the text.
            advice: what else can be done.

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
        Call a function that updates the object's row.

        Raises:
            ConcurrencyError: the row was written since the object was loaded.

        """
        self.refuse_loss()
        try:
            update()
        except ConcurrencyError as error:
            if not any(self._writers) or isinstance(error, _Named):
                raise  # the storage's text is just as clear
            raise self.refused("that") from error

    @property
    @abstractmethod
    def instance(self) -> Any:
        """The object."""

    @abstractmethod
    def refuse_loss(self) -> None:
        """
        Allow the object's save, or refuse it.

        Raises:
            ConcurrencyError: the save would overwrite others' writes.

        """

    @abstractmethod
    def close(self) -> None:
        """Stop: the object is no longer held."""


class _Named(ConcurrencyError):
    """An error whose text names the handlers already."""


# Logs, the journal and users know it by its public name.
_Named.__name__ = _Named.__qualname__ = ConcurrencyError.__qualname__
_Named.__module__ = ConcurrencyError.__module__


# ----------------------------------------------------------------------------- rows


class RowWatch(Watch):
    """
    Watches a row: inspects the statements that may write it before they are executed.

    It watches until it is closed, its object is gone, or the transaction in which the
    object was loaded has ended.
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
        Start inspecting the statements of a connection.

        Args:
            say: as for every watch.
            registry: likewise.
            holder: likewise.
            instance: the object.
            connection: the connection that loaded it.
            tables: the tables of the row, in lower case.
            image: reads the row's present values, None if it is gone.
            version: the field that counts its saves, if there is one.

        """
        super().__init__(say, registry, holder)
        self._found = ref(instance)
        self._connection = connection
        self._tables = tuple(tables)
        self._image = image
        self._version = version
        self._before: Image | None = None
        self._is_paused = False
        self._is_atomic = connection.in_atomic_block
        # First in the list, since execute_wrapper() removes the last one.
        connection.execute_wrappers.insert(0, self._look)

    def close(self) -> None:
        """Stop: the object is no longer held."""
        with suppress(ValueError):
            self._connection.execute_wrappers.remove(self._look)

    @property
    def instance(self) -> Any:
        """The object, None if it is gone."""
        return self._found()

    def refuse_loss(self) -> None:
        """Stop if nothing was written; otherwise inspect the save."""
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
        elif _may_write(sql, self._tables):
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
        """Let the object's own save() write, or refuse it."""
        before = self._before
        if before is None:
            return execute(*rest)
        now = self._read()
        if now is None:
            raise self.refused("the deletion")
        version, is_asked = self._version, _UPDATE_NAME in vars(self.instance)
        if version and is_asked and before[version] != now[version]:
            return execute(*rest)  # it fails by itself, since it compares the version
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
    """Watches the row of a document, whose version prevents a loss."""

    def refuse_loss(self) -> None:
        """Stop: only the save itself is still to be executed."""
        self.close()


def watch_of(instance: Any, connection: BaseDatabaseWrapper) -> RowWatch | None:
    """Return the watch of an object's row, None without one."""
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
    """Return the fields and values that an object's running save() writes, if any."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is _UPDATE and frame.f_locals["self"] is instance:
            values = frame.f_locals["values"]
            return [(field, value) for field, _, value in values]
        frame = frame.f_back
    return None


def _is_lost(field: Any, value: Any, before: Image, now: Image) -> bool:
    """Return whether a field was written in the meantime and would be overwritten."""
    name = field.attname
    if name not in now or before.get(name) == now[name] or now[name] == value:
        return False
    # Computed values build on the present row; modification times are always new.
    if hasattr(value, "resolve_expression") or getattr(field, "auto_now", False):
        return False
    try:
        return bool(field.to_python(value) != field.to_python(now[name]))
    except (ValidationError, TypeError, ValueError):
        return True


# ---------------------------------------------------------- custom repositories

_open: ContextVar[tuple[KeyWatch, ...]] = ContextVar("django_cqrs_watches", default=())


class KeyWatch(Watch):
    """Watches an object of which only the key is known, for others with this key."""

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
        Start watching.

        Args:
            say: as for every watch.
            registry: likewise.
            holder: likewise.
            instance: the object.
            key: its key, together with its storage.

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
        """Stop: the object is no longer held."""
        _open.reset(self._token)

    def refuse_loss(self) -> None:
        """
        Allow the object's save, or refuse it.

        Raises:
            ConcurrencyError: another object was saved under its key.

        """
        self._writers = {
            name: scopes
            for name, scopes in self._writers.items()
            if not _is_undone(scopes)
        }
        if self._writers:
            raise self.refused("that")

    def note_other(self, key: Any, instance: Any) -> None:
        """Note an object that is saved, or deleted, under a key."""
        if key == self._key and instance is not self._instance:
            self.note_writer(list(self._scopes_inside()))

    def _scopes_inside(self) -> Iterator[BusScope]:
        """Yield the scopes between the writer and the holder of the object."""
        scope: BusScope | None = scope_of(current.get())
        while scope is not None and scope is not self._scope:
            yield scope
            scope = scope.parent


def note_kept(key: Any, instance: Any) -> None:
    """Tell the holders of other objects with this key that this one is saved."""
    for watch in _open.get():
        watch.note_other(key, instance)


def _is_undone(scopes: Iterable[BusScope]) -> bool:
    """Return whether one of some scopes was rolled back, and their writes with it."""
    return any(scope.is_dropped for scope in scopes)


# ------------------------------------------------------------------- running handlers


_KEEPING: CodeType = Watch.update.__code__


def handler_at_work(registry: Registry) -> str | None:
    """Return the name of the innermost running handler, None if none runs."""
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
    """Return a handler method's name in errors: ``Ticket.assign``."""
    return f"{name_of_type(owner)}.{name}"


def called_by(endpoint: Endpoint) -> str:
    """Return a handler's name in errors: as a method, or as a function's path."""
    acting = endpoint.action or endpoint
    if acting.owner is None:
        return place_of(acting.function)
    return name_of_method(acting.owner, acting.function.__name__)


_names: WeakKeyDictionary[RouteTable, dict[CodeType, str]] = WeakKeyDictionary()


def _names_of(registry: Registry) -> dict[CodeType, str]:
    """Return the names of handlers by their code."""
    table = registry.routes
    names = _names.get(table)
    if names is None:
        names = _names[table] = {
            inspect.unwrap(each.function).__code__: called_by(each)
            for each in table.endpoints
        }
    return names
