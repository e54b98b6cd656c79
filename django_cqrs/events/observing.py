"""Observers of events: what traces put around appends, loads and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from django_cqrs.events.recorded import Recorded


class EventObserver(Protocol):
    """Returns contexts that are put around the work of the event store."""

    def appending(
        self, category: str | None, count: int
    ) -> AbstractContextManager[dict[str, str]]:
        """Return a context for an append; it gives what is stored as its trace."""
        ...

    def loading(self, category: str) -> AbstractContextManager[Any]:
        """Return a context for the loading of an object from its stream."""
        ...

    def projecting(
        self, name: str, events: Sequence[Recorded]
    ) -> AbstractContextManager[Any]:
        """Return a context for a projection's name and the events of a batch."""
        ...


_observers: Final[list[EventObserver]] = []
_NOTHING: Final = nullcontext[Any]()


def add_event_observer(observer: EventObserver) -> None:
    """Put the contexts of an observer around the work of this process."""
    _observers.append(observer)


def remove_event_observer(observer: EventObserver) -> None:
    """Stop observing."""
    _observers.remove(observer)


def observed_append(
    category: str | None, count: int
) -> AbstractContextManager[dict[str, str] | None]:
    """Return a context for an append; it gives the trace to store, if any."""
    return _appending(category, count) if _observers else _NOTHING


@contextmanager
def _appending(category: str | None, count: int) -> Iterator[dict[str, str]]:
    trace: dict[str, str] = {}
    with ExitStack() as stack:
        for observer in _observers:
            trace |= stack.enter_context(observer.appending(category, count))
        yield trace


def observed_load(category: str) -> AbstractContextManager[Any]:
    """Return a context for the loading of an object."""
    return _loading(category) if _observers else _NOTHING


@contextmanager
def _loading(category: str) -> Iterator[None]:
    with ExitStack() as stack:
        for observer in _observers:
            stack.enter_context(observer.loading(category))
        yield


def observed_batch(
    name: str, events: Sequence[Recorded]
) -> AbstractContextManager[Any]:
    """Return a context for a batch, if it has events."""
    return _projecting(name, events) if _observers and events else _NOTHING


@contextmanager
def _projecting(name: str, events: Sequence[Recorded]) -> Iterator[None]:
    with ExitStack() as stack:
        for observer in _observers:
            stack.enter_context(observer.projecting(name, events))
        yield
