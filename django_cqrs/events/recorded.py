"""Events as they are stored, and as they are given to be stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django_cqrs.events.decoding import TAGS, Decoder, headers_in, user_headers
from django_cqrs.exceptions import InvalidOption, MessageConversionError, UnknownMessage
from django_cqrs.messages import HeaderValue, Message
from django_cqrs.pipeline.envelopes import TRACE


class Stored:
    """
    An event to be stored with headers, or an id, of its own.

    It takes the place of the event: in ``event_store.append([...])``, and in what an
    aggregate returns or records.
    """

    __slots__ = ("event", "event_id", "headers")

    def __init__(
        self,
        event: Any,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        event_id: UUID | None = None,
    ) -> None:
        """
        Take an event.

        Args:
            event: the event.
            headers: headers to add; they win over those passed on.
            event_id: the id of its message, by default a new one. An event whose id is
                stored is not stored again.

        Raises:
            InvalidOption: the id is not a UUID.

        """
        if event_id is not None and not isinstance(event_id, UUID):
            msg = f"event_id= takes a UUID, not {event_id!r}."
            raise InvalidOption(msg)
        self.event = event
        self.headers = headers
        self.event_id = event_id

    def __repr__(self) -> str:
        """Return the event's type: its values may be secret."""
        return f"Stored({type(self.event).__name__})"


class Recorded:
    """
    An event of a stream, with its place, its headers and its origin.

    Attributes:
        position: its number in the whole store.
        stream: the name of its stream; None if it has none.
        version: its number in the stream, from 1; None without a stream.
        name: the name that it was stored under.
        shape: the version of its payload's shape.
        recorded_at: the time of its appending, as in the header ``timestamp``.
        event_id: the id of its message.
        correlation_id: the id of the first message of its chain.
        causation_id: the id of the message that was handled, if any.
        link_to: the position of the original if this is a link, else None.

    """

    __slots__ = (
        "_decoder",
        "_event",
        "_headers",
        "_is_decoded",
        "_payload",
        "causation_id",
        "correlation_id",
        "event_id",
        "link_to",
        "message",
        "name",
        "position",
        "recorded_at",
        "shape",
        "stream",
        "stream_id",
        "version",
    )

    message: Message | None
    """The message to be published, of an event that was appended just now."""

    def __init__(  # noqa: PLR0917 - the columns of a row, in order
        self,
        position: int,
        stream_id: int | None,
        stream: str | None,
        version: int | None,
        name: str,
        shape: int,
        payload: str,
        headers: str,
        event_id: UUID,
        correlation_id: UUID,
        causation_id: UUID | None,
        recorded_at: datetime,
        link_to: int | None,
        decoder: Decoder,
    ) -> None:
        """Take the columns of a row, with payload and headers as JSON text."""
        self.position = position
        self.stream_id = stream_id
        self.stream = stream
        self.version = version
        self.name = name
        self.shape = shape
        self._payload = payload
        self._headers = headers
        self.event_id = event_id
        self.correlation_id = correlation_id
        self.causation_id = causation_id
        self.recorded_at = recorded_at
        self.link_to = link_to
        self._decoder = decoder
        self._is_decoded = False
        self.message = None

    @property
    def event(self) -> Any:
        """
        The event, decoded when it is asked for; None if an upcaster drops it.

        Raises:
            UnknownMessage: no registered class has its name, or only an older version.
            MessageConversionError: its JSON does not fit its class.

        """
        __traceback_hide__ = True
        if not self._is_decoded:
            try:
                self._event = self._decoder.event(
                    self.name, self.shape, self._payload, self._headers
                )
            except (MessageConversionError, UnknownMessage) as error:
                self._tell_place(error)
                raise
            self._is_decoded = True
        return self._event

    @property
    def is_dropped(self) -> bool:
        """
        Whether an upcaster drops it: its place stays, and nobody handles it.

        False for one that cannot be read: who asks for its event is told.
        """
        try:
            reading = self._decoder.reading(self.name, self.shape)
            is_dropped = reading.is_older and self.event is None
        except (MessageConversionError, UnknownMessage):
            return False
        return is_dropped

    @property
    def payload(self) -> Any:
        """
        The JSON of its present shape; as it was stored if no class has its name.

        Raises:
            MessageConversionError: it is not JSON, or an upcaster refuses it.

        """
        __traceback_hide__ = True
        try:
            return self._decoder.payload(
                self.name, self.shape, self._payload, self._headers
            )
        except MessageConversionError as error:
            self._tell_place(error)
            raise

    @property
    def stored_payload(self) -> str:
        """The JSON text as the database returns it."""
        return self._payload

    @property
    def stored_headers(self) -> str:
        """The JSON text of all headers, this package's own too."""
        return self._headers

    @property
    def headers(self) -> dict[str, Any]:
        """
        The stored headers, in JSON's types.

        Raises:
            MessageConversionError: they are not a JSON object.

        """
        __traceback_hide__ = True
        try:
            return user_headers(headers_in(self._headers))
        except MessageConversionError as error:
            self._tell_place(error)
            raise

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that it was stored with: ``("course:42",)``."""
        if TAGS not in self._headers:  # the usual case
            return ()
        try:
            tags = headers_in(self._headers).get(TAGS)
        except MessageConversionError as error:
            self._tell_place(error)
            raise
        tags = tags if isinstance(tags, list) else ()
        return tuple(each for each in tags if isinstance(each, str))

    @property
    def trace(self) -> dict[str, str]:
        """The context of the trace that it was appended in; empty without one."""
        if TRACE not in self._headers:  # the usual case
            return {}
        try:
            stored = headers_in(self._headers).get(TRACE)
        except MessageConversionError:  # who asks for the headers is told
            return {}
        found: dict[Any, Any] = stored if isinstance(stored, dict) else {}
        return {name: text for name, text in found.items() if isinstance(text, str)}

    @property
    def category(self) -> str | None:
        """The category of its stream."""
        return None if self.stream is None else self.stream.partition("-")[0]

    def take(self, event: Any) -> None:
        """Keep the event that this was made of, so that it need not be decoded."""
        self._event = event
        self._is_decoded = True

    def _tell_place(self, error: MessageConversionError | UnknownMessage) -> None:
        """Add the position and the stream to an error."""
        place = f"position {self.position}"
        if self.stream is not None:
            place += f" ({self.stream!r}, version {self.version})"
        if isinstance(error, MessageConversionError):
            error.what = f"{error.what} of the event at {place}"
        else:
            error.args = (f"The event at {place} cannot be read. {error}",)

    def __repr__(self) -> str:
        """Return its name and its place: its values may be secret."""
        where = "" if self.stream is None else f" of {self.stream!r}"
        return f"<Recorded {self.name} at {self.position}{where}>"
