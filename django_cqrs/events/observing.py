"""Observers of batches: what traces put around the work of a projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from django_cqrs.events.recorded import Recorded

BatchObserver = Callable[[str, Sequence[Recorded]], AbstractContextManager[Any]]
"""Returns a context for a projection's name and the events of a batch."""

_observers: list[BatchObserver] = []


def add_batch_observer(observer: BatchObserver) -> None:
    """Put the contexts of an observer around each batch, in this process."""
    _observers.append(observer)


def remove_batch_observer(observer: BatchObserver) -> None:
    """Stop observing."""
    _observers.remove(observer)


@contextmanager
def observed_batch(name: str, events: Sequence[Recorded]) -> Iterator[None]:
    """Enter the contexts of all observers, if there are events."""
    if not _observers or not events:
        yield
        return
    with ExitStack() as stack:
        for observer in _observers:
            stack.enter_context(observer(name, events))
        yield
