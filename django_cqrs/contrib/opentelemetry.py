"""
Traces and gauges with OpenTelemetry's API: ``django-cqrs-kit[opentelemetry]``.

A message that is handled where it is sent has one span of kind INTERNAL. One that goes
through a channel has two: a PRODUCER span at the send and a CONSUMER span at the
handling, which is linked to the first. The trace context travels with the message in
W3C format. Spans have names and ids, never payloads, headers or the texts of
exceptions, which may quote one.

An append of events has a PRODUCER span, and a batch of a projection one CONSUMER span
that is linked to those of its events.

The gauges are the figures of the outbox's channels, and of projections.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.apps import apps
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

from django_cqrs.events.observing import add_event_observer, remove_event_observer
from django_cqrs.exceptions import InvalidOption
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
    from django_cqrs.events.recorded import Recorded
    from django_cqrs.events.status import ProjectionStatus
    from django_cqrs.outbox.statistics import ChannelStatistics

__all__ = ["instrument", "observe_outbox", "observe_projections", "uninstrument"]

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
    add_event_observer(observer)


def uninstrument() -> None:
    """
    Stop tracing: the pipelines are compiled again, without it.

    The gauges of :func:`observe_outbox` and :func:`observe_projections` then show
    nothing.
    """
    while _installed:
        observer = _installed.pop()
        remove_observer(observer)
        remove_event_observer(observer)
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
    _export(_OUTBOX, _of_outbox, meter_provider, using)


def observe_projections(
    meter_provider: MeterProvider | None = None,
    *,
    using: Sequence[str] = (DEFAULT_DB_ALIAS,),
) -> None:
    """
    Export how far the project's projections have come as gauges, in this process.

    Each reading queries the database, in the reader's thread. A second call replaces
    the first.

    Args:
        meter_provider: the provider of the gauges; by default the global one.
        using: the aliases of the databases with events.

    Raises:
        InvalidOption: the app with their tables is not installed.

    """
    if not apps.is_installed("django_cqrs.events"):
        msg = (
            "Projections belong to an app of its own: add 'django_cqrs.events' to "
            "INSTALLED_APPS."
        )
        raise InvalidOption(msg)
    _export(_PROJECTIONS, _of_projections, meter_provider, using)


def _export(
    gauges: Sequence[_Gauge],
    ask: _Ask,
    provider: MeterProvider | None,
    using: Sequence[str],
) -> None:
    _observed[ask] = _GaugeReadings(provider, tuple(using), ask)
    meter = metrics.get_meter(
        "django_cqrs", version("django-cqrs-kit"), meter_provider=provider
    )
    for gauge in gauges:
        # A provider creates each once and permanently, so its values are looked up.
        observe = partial(_observe, provider, ask, gauge)
        meter.create_observable_gauge(
            gauge.name, [observe], gauge.unit, gauge.description
        )


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
    def appending(self, category: str | None, count: int) -> Iterator[dict[str, str]]:
        """Open a span for an append, whose context is stored with the events."""
        attributes = _of_events("send", category or "events", count)
        with self._span(
            f"append {category or 'events'}", SpanKind.PRODUCER, attributes
        ):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            yield carrier

    @contextmanager
    def loading(self, category: str) -> Iterator[None]:
        """Open a span for the loading of an object from its events."""
        attributes = {"cqrs.events.category": category}
        with self._span(f"load {category}", SpanKind.INTERNAL, attributes):
            yield

    @contextmanager
    def projecting(self, name: str, events: Sequence[Recorded]) -> Iterator[None]:
        """Open a span for a batch, linked to the appends of its events."""
        attributes = _of_events("process", name, len(events))
        attributes["messaging.consumer.group.name"] = name
        attributes["cqrs.projection"] = name
        attributes["cqrs.events.first_position"] = events[0].position
        attributes["cqrs.events.last_position"] = events[-1].position
        links = list(_links_to(events))
        with self._span(f"project {name}", SpanKind.CONSUMER, attributes, links):
            yield

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, str | int],
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


class _FigureReading(NamedTuple):
    """The figures of one channel, projection or store."""

    kind: str
    labels: dict[str, str]
    figures: Any


_Ask = Callable[[str], list[_FigureReading]]
"""Returns the figures of a database, by its alias."""


class _Gauge(NamedTuple):
    """A gauge, and how its value is taken from figures of a kind."""

    kind: str
    name: str
    unit: str
    description: str
    value: Callable[[Any], float]


class _GaugeReadings:
    """The values of some gauges, read once for all of them."""

    def __init__(
        self, provider: MeterProvider | None, aliases: tuple[str, ...], ask: _Ask
    ) -> None:
        self.provider = provider
        self._aliases = aliases
        self._ask = ask
        self._found: list[_FigureReading] = []
        self._shown_by: set[str] | None = None
        self._lock = threading.Lock()

    def shown_by(self, name: str) -> list[_FigureReading]:
        """Return the figures that a gauge has not shown yet, by its name."""
        with self._lock:
            if self._shown_by is None or name in self._shown_by:
                self._found = [
                    reading
                    for alias in self._aliases
                    for reading in _read(self._ask, alias)
                ]
                self._shown_by = set()
            self._shown_by.add(name)
            return self._found


def _observe(
    provider: MeterProvider | None, ask: _Ask, gauge: _Gauge, _options: CallbackOptions
) -> list[Observation]:
    """Return the values of a gauge, or nothing once observing has stopped."""
    readings = _observed.get(ask)
    if readings is None or readings.provider is not provider:
        return []
    return [
        Observation(gauge.value(each.figures), each.labels)
        for each in readings.shown_by(gauge.name)
        if each.kind == gauge.kind
    ]


def _read(ask: _Ask, alias: str) -> list[_FigureReading]:
    """Return the figures of a database; none if it is unavailable."""
    connection = connections[alias]
    was_open = connection.connection is not None
    try:
        return ask(alias)
    except Error:
        logger.warning("%s of %r cannot be read", _SUBJECTS[ask], alias, exc_info=True)
        return []
    finally:
        if not was_open:  # Django does not clean up after this thread
            connection.close()


def _of_outbox(alias: str) -> list[_FigureReading]:
    from django_cqrs.outbox.statistics import statistics_of

    return [
        _FigureReading(
            "channel", {"cqrs.channel": each.channel, "cqrs.database": alias}, each
        )
        for each in statistics_of(alias)
    ]


def _of_projections(alias: str) -> list[_FigureReading]:
    from django_cqrs.events.operations import Projections
    from django_cqrs.events.status import store_status

    found = [_FigureReading("store", {"cqrs.database": alias}, store_status(alias))]
    for each in Projections(alias).statuses():
        labels = {"cqrs.projection": each.name, "cqrs.database": alias}
        found.append(_FigureReading("projection", labels, each))
    return found


_SUBJECTS: Final[dict[_Ask, str]] = {
    _of_outbox: "Outbox",
    _of_projections: "Projections",
}


def _oldest(each: ChannelStatistics) -> float:
    return each.oldest_seconds or 0.0


_OUTBOX: Final = (
    _Gauge(
        "channel",
        "cqrs.outbox.pending",
        "{message}",
        "Messages that are due but not yet handled.",
        attrgetter("pending"),
    ),
    _Gauge(
        "channel",
        "cqrs.outbox.oldest_age",
        "s",
        "Time that the oldest due message has waited.",
        _oldest,
    ),
    _Gauge(
        "channel",
        "cqrs.outbox.delayed",
        "{message}",
        "Messages that wait for their due time or for another attempt.",
        attrgetter("delayed"),
    ),
    _Gauge(
        "channel",
        "cqrs.outbox.dead",
        "{message}",
        "Dead letters.",
        attrgetter("dead"),
    ),
)


def _position(each: ProjectionStatus) -> float:
    return each.position or 0


def _handled(each: ProjectionStatus) -> float:
    return sum(shard.handled for shard in each.shards)


def _attempts(each: ProjectionStatus) -> float:
    return max((shard.attempts for shard in each.shards), default=0)


_PROJECTIONS: Final = (
    _Gauge(
        "projection",
        "cqrs.projection.lag",
        "{event}",
        "Events that a projection has not handled yet.",
        attrgetter("lag"),
    ),
    _Gauge(
        "projection",
        "cqrs.projection.lag_time",
        "s",
        "Time that the oldest of those has waited.",
        attrgetter("lag_seconds"),
    ),
    _Gauge(
        "projection",
        "cqrs.projection.position",
        "{position}",
        "Position up to which a projection has handled all events.",
        _position,
    ),
    _Gauge(
        "projection",
        "cqrs.projection.handled",
        "{event}",
        "Events that a projection has ever handled.",
        _handled,
    ),
    _Gauge(
        "projection",
        "cqrs.projection.attempts",
        "{attempt}",
        "Failed attempts in a row at the event that a projection waits with.",
        _attempts,
    ),
    _Gauge(
        "projection",
        "cqrs.projection.failures",
        "{event}",
        "Events that a projection has skipped or parked.",
        attrgetter("failures"),
    ),
    _Gauge(
        "projection",
        "cqrs.projection.parked",
        "{partition}",
        "Partitions that a projection has parked.",
        attrgetter("parked"),
    ),
    _Gauge(
        "store",
        "cqrs.events.head",
        "{position}",
        "Position of the last event.",
        attrgetter("head"),
    ),
    _Gauge(
        "store",
        "cqrs.events.settled_age",
        "s",
        "Time for which an open transaction has held projections back.",
        attrgetter("settled_age"),
    ),
)
_observed: Final[dict[_Ask, _GaugeReadings]] = {}

MOST_LINKS: Final = 128
"""The maximum number of links of a span, as OpenTelemetry's SDK limits them too."""


def _links_to(events: Sequence[Recorded]) -> Iterator[Link]:
    """Yield a link to each span in which some of the events were appended."""
    seen: set[tuple[int, int]] = set()
    for each in events:
        carrier = each.trace
        if not carrier:
            continue
        sent_in = propagate.extract(carrier, context=Context())
        producer = trace.get_current_span(sent_in).get_span_context()
        place = producer.trace_id, producer.span_id
        if producer.is_valid and place not in seen and len(seen) < MOST_LINKS:
            seen.add(place)
            yield Link(producer)


def _of_events(operation: str, destination: str, count: int) -> dict[str, str | int]:
    return {
        "messaging.system": "django_cqrs",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.batch.message_count": count,
    }


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
