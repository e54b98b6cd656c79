"""The stage that has a message handled once: a later one of its key is a duplicate."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Union

from django.db import connections

from django_cqrs.annotations import is_plain_class
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Delivery, Envelope, next_sequence
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.conversion.stored import restore_unset
from django_cqrs.declaration.key_sources import (
    KeyReader,
    KeySource,
    as_key,
    faults_of,
    key_reader,
)
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import (
    InvalidHandler,
    InvalidOption,
    MessageConversionError,
    UnexpectedResult,
)
from django_cqrs.inbox import Inbox, find_inbox, no_inbox
from django_cqrs.messages import Message, result_type_of, scope_of
from django_cqrs.pipeline.scopes import Recording, Sent, send
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run

logger: Final = logging.getLogger("django_cqrs.pipeline")


def idempotency_key_of(endpoint: Endpoint) -> KeySource | None:
    """Return where an endpoint's key is, or that of the action beside it."""
    source: KeySource | None = endpoint.policies.idempotency_key
    return source


def once(run: Run, point: JoinPoint, alias: str, *, answers: bool) -> Run:
    """
    Have `run` run for the first message of each key of an endpoint.

    Args:
        run: what is run inside, in the transaction that the key is entered in.
        point: where this is.
        alias: the database of that transaction.
        answers: whether somebody waits for what `run` returns, so that it is kept
            for the duplicates.

    """
    endpoint = point.endpoint
    source = idempotency_key_of(endpoint)
    if source is None:
        return run
    return _once(
        run,
        alias,
        endpoint,
        inbox=inbox_for(endpoint.place),
        read=key_reader(source, "idempotency_key", endpoint.name),
        owners=_owners(endpoint),
        answer=Answer(point) if answers else None,
        outputs=None,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class BusKey:
    """What a bus tells duplicates by, and what it does with one."""

    source: KeySource
    replays: bool | Header = False
    """Whether what the first one sent is sent again; a header may say so."""

    def __post_init__(self) -> None:
        """
        Refuse what cannot be a key of a bus.

        Raises:
            InvalidOption: it is none, or no two messages have the same.

        """
        faults = list(faults_of(self.source, ()))
        if self.source == Header("message_id"):
            faults.append("Each message that is sent has a different one.")
        if faults:
            msg = f"CommandBus(idempotency_key={self.source!r}): {' '.join(faults)}"
            raise InvalidOption(msg)
        if not isinstance(self.replays, (bool, Header)):
            msg = f"replay_outputs= is True, False or a Header, not {self.replays!r}."
            raise InvalidOption(msg)

    def __str__(self) -> str:
        """Return whose key it is."""
        return f"A CommandBus keyed by {self.source!r}"

    @property
    def space(self) -> str:
        """What sets its keys apart from those that are taken from somewhere else."""
        if isinstance(self.source, Header):
            return f"bus:header:{self.source.name}"
        if isinstance(self.source, str):
            return f"bus:attribute:{self.source}"
        return "bus"


def once_on_bus(
    run: Run, point: JoinPoint, alias: str, key: BusKey, *, answers: bool
) -> Run:
    """
    Have `run` run for the first message of each key that a bus sends to an endpoint.

    Args:
        run: what is run inside, in the transaction that the key is entered in.
        point: where this is.
        alias: the database of that transaction.
        key: of the bus.
        answers: whether `run` returns what the handler does.

    Raises:
        InvalidOption: no installed app remembers keys.

    """
    endpoint = point.endpoint
    inbox = find_inbox()
    if inbox is None:
        raise InvalidOption(str(no_inbox(str(key))))
    outputs = None
    if key.replays is not False:
        outputs = Outputs(key.replays, point.bus.registry.deliver)
    return _once(
        run,
        alias,
        endpoint,
        inbox=inbox,
        read=key_reader(key.source, "idempotency_key", f"the bus to {endpoint.name}"),
        owners=_owners(endpoint, f"{key.space}:"),
        answer=Answer(point) if answers else None,
        outputs=outputs,
    )


def _once(
    run: Run,
    alias: str,
    endpoint: Endpoint,
    *,
    inbox: Inbox,
    read: KeyReader,
    owners: tuple[str, tuple[str, ...]],
    answer: Answer | None,
    outputs: Outputs | None,
) -> Run:
    owner, former = owners

    def run_once(message: Message) -> Any:
        __traceback_hide__ = True
        key = read(message)
        if key is None:
            return run(message)
        seen = inbox.enter(alias, owner, key, message.message_id, former=former)
        if seen is not None:
            log_duplicate(message, endpoint)
            if outputs is not None:
                outputs.send_again(seen.outputs, message)
            return None if answer is None else answer.read(seen.result)
        recording = None if outputs is None else Recording(scope_of(message))
        handling = message.handling
        around: list[bool] = [] if handling.drops is None else handling.drops
        drops: list[bool] = []  # of this attempt
        handling.drops = drops
        result = run(message)
        if drops:  # nobody has handled it, so a later one is not a duplicate
            around += drops
            inbox.forget(alias, owner, key)
            return result
        kept = None if answer is None else answer.write(result)
        sent = None
        if outputs is not None and recording is not None:
            sent = outputs.write(recording.sent())
        if kept is not None or sent is not None:
            inbox.keep(alias, owner, key, result=kept, outputs=sent)
        return result

    return run_once


def inbox_for(whose: str) -> Inbox:
    """
    Return where keys are remembered.

    Raises:
        InvalidHandler: no installed app has such a place.

    """
    inbox = find_inbox()
    if inbox is None:
        raise InvalidHandler(str(no_inbox(whose)))
    return inbox


def _owners(endpoint: Endpoint, space: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the names that an endpoint's keys are kept under, now and before."""
    owner, *former = (as_key(f"{space}{name}") for name in endpoint.names)
    return owner, tuple(former)


def log_duplicate(message: Message, endpoint: Endpoint) -> None:
    """Say that a message is not handled."""
    logger.info(
        "Message for %s is a duplicate and was not handled",
        endpoint.name,
        extra={
            "cqrs_message_id": str(message.message_id),
            "cqrs_correlation_id": str(message.correlation_id),
            "cqrs_endpoint": endpoint.name,
        },
    )


class Answer:
    """What a dispatch gives back, to JSON text and back again."""

    def __init__(self, point: JoinPoint) -> None:
        """Take the type that the command promises, or else its handler's."""
        self._place = point.endpoint.place
        self._type = PayloadType(_result_type_at(point))

    def write(self, result: Any) -> bytes | None:
        """
        Return a result as it is kept.

        Raises:
            UnexpectedResult: it would not come back as it is.

        """
        if result is None:
            return None
        try:
            text = self._type.to_json(result)
        except MessageConversionError as error:
            msg = (
                f"{self._place} returned a value that cannot be stored for duplicates "
                f"of the message: {error} Annotate its return with a type that can be "
                "created from JSON, or return None."
            )
            raise UnexpectedResult(msg) from error
        unset = self._type.unset_in(result)
        if not unset:
            return text
        return b"%b%b%b%b}" % (_UNSET, json.dumps(unset).encode(), _VALUE, text)

    def read(self, text: bytes | None) -> Any:
        """Return the result that was kept."""
        if text is None:
            return None
        if not text.startswith(_UNSET):
            return self._type.from_stored_json(text)
        whole = text.decode()
        unset, end = json.JSONDecoder().raw_decode(whole, len(_UNSET))
        value = whole[end + len(_VALUE) : -1].encode()
        result = self._type.from_stored_json(value)
        restore_unset(result, unset)
        return result


# Around a result with models in it: which of their fields were not given.
_UNSET: Final = b'{"django_cqrs.unset":'
_VALUE: Final = b',"value":'


def _result_type_at(point: JoinPoint) -> Any:
    cls = point.payload_type
    if cls is not None and is_plain_class(cls):
        promised = result_type_of(cls)
        if promised is not Any:
            return promised
    both = (point.endpoint, point.endpoint.action)
    types = tuple(_returned_by(each) for each in both if each is not None)
    return Union[types]  # noqa: UP007 - of as many as there are


def _returned_by(endpoint: Endpoint) -> Any:
    if endpoint.subject is not None:
        return endpoint.subject.result_of(endpoint)
    return endpoint.plan.returns


# ------------------------------------------------------------------------ what was sent


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A message that was sent to a channel, as it is kept for duplicates."""

    using: str
    channel: str
    envelope: Envelope


class Outputs:
    """The messages that handling one has sent: kept as JSON, and sent again."""

    def __init__(self, on: bool | Header, deliver: Callable[..., None]) -> None:
        """
        Take what handles them where a channel does so in this process.

        Args:
            on: True, or a header without which a duplicate sends nothing.
            deliver: handles a message, ``using=`` the database it was sent in.

        """
        self._header = on.name if isinstance(on, Header) else None
        self._deliver = deliver
        self._type = PayloadType(list[Output])

    def write(self, sent: Sequence[Sent]) -> bytes | None:
        """Return messages as they are kept, in the order of their sending."""
        outputs = [
            Output(each.alias, each.sink.alias, each.entry.envelope)
            for each in sent
            if isinstance(each.entry, Delivery)  # no entry of the journal, say
        ]
        outputs.sort(key=lambda output: output.envelope.sequence)
        return self._type.to_json(outputs) if outputs else None

    def send_again(self, text: bytes | None, message: Message) -> None:
        """
        Send what was kept once more: the same messages, by ids, headers and times.

        Args:
            text: what was kept, if anything.
            message: the duplicate; in its transaction they are sent.

        Raises:
            InvalidChannel: a channel of theirs is not there now.

        """
        if text is None or not self._is_wanted(message):
            return
        scope = scope_of(message)
        outputs: list[Output] = self._type.from_stored_json(text)
        for output in outputs:
            envelope = dataclasses.replace(output.envelope, sequence=next_sequence())
            delivery = Delivery(envelope, partial(self._deliver, using=output.using))
            send(scope, connections[output.using], channels[output.channel], delivery)
        logger.info(
            "%d messages of the first command with its key are sent again", len(outputs)
        )

    def _is_wanted(self, message: Message) -> bool:
        return self._header is None or bool(message._user.get(self._header))
