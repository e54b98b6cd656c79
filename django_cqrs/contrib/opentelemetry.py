"""
Traces and gauges with OpenTelemetry's API: ``django-cqrs-kit[opentelemetry]``.

A message that is handled where it is sent has one span of kind INTERNAL. One that goes
through a channel has two: a PRODUCER span at the send and a CONSUMER span at the
handling, which is linked to the first. The trace context travels with the message in
W3C format. Spans have names and ids, never payloads, headers or the texts of
exceptions, which may quote one.

The gauges are the figures of the outbox's channels.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from django.db import DEFAULT_DB_ALIAS, Error, connections
from opentelemetry import baggage, context, metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
)

from django_cqrs.messages import Message, handling_of, name_run
from django_cqrs.pipeline.observation import (
    Step,
    add_observer,
    label_of,
    name_of_error,
    remove_observer,
)
from django_cqrs.routing.endpoint import JoinPoint, Run

if TYPE_CHECKING:
    from django_cqrs.outbox.statistics import ChannelStatistics

__all__ = ["instrument", "observe_outbox", "uninstrument"]

logger: Final = logging.getLogger("django_cqrs.health")


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """
    Start tracing in this process: call it in an ``AppConfig.ready()``.

    A second call replaces the first.

    Args:
        tracer_provider: the provider of the spans; by default the global one.

    """
    uninstrument()
    tracer = trace.get_tracer(
        "django_cqrs", version("django-cqrs-kit"), tracer_provider=tracer_provider
    )
    observer = _Tracing(tracer)
    _installed.append(observer)
    add_observer(observer)


def uninstrument() -> None:
    """
    Stop tracing: the pipelines are compiled again, without it.

    The gauges of :func:`observe_outbox` then show nothing.
    """
    while _installed:
        remove_observer(_installed.pop())
    _observed.clear()


def observe_outbox(
    meter_provider: MeterProvider | None = None,
    *,
    using: Sequence[str] = (DEFAULT_DB_ALIAS,),
) -> None:
    """
    Export the figures of the outbox's channels as gauges, in this process.

    Each reading queries the database, in the reader's thread. A second call replaces
    the first.

    Args:
        meter_provider: the provider of the gauges; by default the global one.
        using: the aliases of the databases with an outbox.

    """
    _observed.clear()
    _observed.append(_Figures(meter_provider, tuple(using)))
    meter = metrics.get_meter(
        "django_cqrs", version("django-cqrs-kit"), meter_provider=meter_provider
    )
    for name, unit, description, value in _GAUGES:
        # A provider creates each once and permanently, so its values are looked up.
        observe = partial(_observe, meter_provider, name, value)
        meter.create_observable_gauge(name, [observe], unit, description)


class _Tracing:
    """Puts a span around each step of a message."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, run: Run, point: JoinPoint, step: Step) -> Run:
        label = label_of(point)
        attributes = _attributes_at(point, label, step)
        if point.endpoint.action is not None and step is not Step.SEND:
            run = _named(run, point.endpoint.name)
        if step is Step.HANDLE:
            return self._handling(run, label, attributes)
        if step is Step.SEND:
            return self._sending(run, f"send {point.endpoint.channel}", attributes)
        return self._consuming(run, f"process {label}", attributes)

    def _handling(self, run: Run, name: str, attributes: dict[str, str]) -> Run:
        def run_traced(message: Message) -> Any:
            with self._span(name, SpanKind.INTERNAL, attributes) as span:
                _identify(span, message)
                return run(message)

        return run_traced

    def _sending(self, run: Run, name: str, attributes: dict[str, str]) -> Run:
        def run_traced(message: Message) -> Any:
            with self._span(name, SpanKind.PRODUCER, attributes) as span:
                _identify(span, message, is_messaging=True)
                carrier: dict[str, str] = {}
                message.handling.trace = carrier
                propagate.inject(carrier)
                return run(message)

        return run_traced

    def _consuming(self, run: Run, name: str, attributes: dict[str, str]) -> Run:
        def run_traced(message: Message) -> Any:
            sent_in = _context_of(message)
            producer = trace.get_current_span(sent_in).get_span_context()
            # It may be handled much later, and more than once: linked, not a child.
            links = [Link(producer)] if producer.is_valid else []
            with (
                _with_baggage(sent_in),
                self._span(name, SpanKind.CONSUMER, attributes, links) as span,
            ):
                _identify(span, message, is_messaging=True)
                return run(message)

        return run_traced

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: dict[str, str],
        links: list[Link] | None = None,
    ) -> Iterator[Span]:
        """Open a span that names the error which ended it, without its text."""
        with self._tracer.start_as_current_span(
            name,
            kind=kind,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", name_of_error(error))
                span.set_status(StatusCode.ERROR)
                raise


_installed: Final[list[_Tracing]] = []
_Value = Callable[["ChannelStatistics"], float]


class _Figures:
    """The values of the gauges, read once for all of them."""

    def __init__(
        self, provider: MeterProvider | None, aliases: tuple[str, ...]
    ) -> None:
        self.provider = provider
        self._aliases = aliases
        self._found: list[tuple[str, ChannelStatistics]] = []
        self._shown_by: set[str] | None = None
        self._lock = threading.Lock()

    def shown_by(self, name: str) -> list[tuple[str, ChannelStatistics]]:
        """Return the figures that a gauge has not shown yet, by its name."""
        with self._lock:
            if self._shown_by is None or name in self._shown_by:
                self._found = [
                    (alias, each) for alias in self._aliases for each in _ask(alias)
                ]
                self._shown_by = set()
            self._shown_by.add(name)
            return self._found


def _observe(
    provider: MeterProvider | None, name: str, value: _Value, _options: CallbackOptions
) -> list[Observation]:
    """Return the values of a gauge, or nothing once observing has stopped."""
    return [
        Observation(value(each), {"cqrs.channel": each.channel, "cqrs.database": alias})
        for figures in _observed
        if figures.provider is provider
        for alias, each in figures.shown_by(name)
    ]


def _ask(alias: str) -> list[ChannelStatistics]:
    """Return the figures of a database; none if it is unavailable."""
    from django_cqrs.outbox.statistics import statistics_of

    connection = connections[alias]
    was_open = connection.connection is not None
    try:
        return statistics_of(alias)
    except Error:
        logger.warning("Outbox of %r cannot be read", alias, exc_info=True)
        return []
    finally:
        if not was_open:  # Django does not clean up after this thread
            connection.close()


def _oldest(each: ChannelStatistics) -> float:
    return each.oldest_seconds or 0.0


_GAUGES: Final[tuple[tuple[str, str, str, _Value], ...]] = (
    (
        "cqrs.outbox.pending",
        "{message}",
        "Messages that are due but not yet handled.",
        lambda each: each.pending,
    ),
    (
        "cqrs.outbox.oldest_age",
        "s",
        "Time that the oldest due message has waited.",
        _oldest,
    ),
    (
        "cqrs.outbox.delayed",
        "{message}",
        "Messages that wait for their due time or for another attempt.",
        lambda each: each.delayed,
    ),
    (
        "cqrs.outbox.dead",
        "{message}",
        "Dead letters.",
        lambda each: each.dead,
    ),
)
_observed: Final[list[_Figures]] = []


def _attributes_at(point: JoinPoint, label: str, step: Step) -> dict[str, str]:
    endpoint, cls = point.endpoint, point.payload_type
    attributes = {
        "cqrs.message.kind": str(endpoint.kind),
        "cqrs.handler": endpoint.name,
    }
    if cls is not None:
        attributes["cqrs.message.type"] = f"{cls.__module__}.{cls.__qualname__}"
    if step is Step.HANDLE:
        return attributes
    operation = "send" if step is Step.SEND else "process"
    attributes |= {
        "messaging.system": "django_cqrs",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": label,
    }
    if endpoint.channel is not None:
        attributes["cqrs.channel"] = endpoint.channel
        if step is Step.SEND:
            attributes["messaging.destination.name"] = endpoint.channel
    if step is Step.CONSUME:
        attributes["messaging.consumer.group.name"] = endpoint.name
    return attributes


def _named(run: Run, name: str) -> Run:
    """Name the factory or the action that ran in the span."""

    def run_named(message: Message) -> Any:
        try:
            return run(message)
        finally:
            span = trace.get_current_span()
            span.set_attribute("cqrs.handler", name_run(message, name))

    return run_named


def _identify(span: Span, message: Message, *, is_messaging: bool = False) -> None:
    """Identify the message in a span; ids are only created if it is recorded."""
    if not span.is_recording():
        return
    own, common = str(message.message_id), str(message.correlation_id)
    span.set_attribute("cqrs.message.id", own)
    span.set_attribute("cqrs.message.correlation_id", common)
    if is_messaging:
        span.set_attribute("messaging.message.id", own)
        span.set_attribute("messaging.message.conversation_id", common)


def _context_of(message: Message) -> Context:
    """Return the context that a message was sent in, if it was stored."""
    stored: dict[Any, Any] = handling_of(message).trace or {}
    # It comes from a table: its content must not stop the message.
    carrier = {name: text for name, text in stored.items() if isinstance(text, str)}
    return propagate.extract(carrier, context=Context())


@contextmanager
def _with_baggage(sent_in: Context) -> Iterator[None]:
    """Attach the sender's baggage, and keep the span that is open here."""
    here = context.get_current()
    for name, value in baggage.get_all(sent_in).items():
        here = baggage.set_baggage(name, value, here)
    token = context.attach(here)
    try:
        yield
    finally:
        context.detach(token)
