"""The stage that has a message handled once: a later one of its key is a duplicate."""

from __future__ import annotations

import logging
from typing import Any, Final, Union

from django_cqrs.conversion import PayloadType, is_plain_class
from django_cqrs.exceptions import (
    InvalidHandler,
    MessageConversionError,
    UnexpectedResult,
)
from django_cqrs.inboxes import Inbox, find_inbox
from django_cqrs.interception import JoinPoint
from django_cqrs.keys import KeySource, as_key, key_reader
from django_cqrs.messages import Message, result_type_of
from django_cqrs.policies import no_inbox
from django_cqrs.routing import Endpoint
from django_cqrs.stages import Run

logger: Final = logging.getLogger("django_cqrs.pipeline")


def idempotency_key_of(endpoint: Endpoint) -> KeySource | None:
    """Return where an endpoint's key is: its own, or that of the action beside it."""
    source: KeySource | None = endpoint.policies.idempotency_key
    if source is None and endpoint.action is not None:
        source = endpoint.action.policies.idempotency_key
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
    inbox = inbox_for(endpoint.place)
    read = key_reader(source, "idempotency_key", endpoint.name)
    owner, former = _owners(endpoint.name, endpoint)
    answer = Answer(point) if answers else None

    def run_once(message: Message) -> Any:
        key = read(message)
        if key is None:
            return run(message)
        seen = inbox.enter(alias, owner, key, message.message_id, former=former)
        if seen is not None:
            log_duplicate(message, endpoint)
            return answer.read(seen.result) if answer is not None else None
        result = run(message)
        if answer is not None and result is not None:
            kept = answer.write(result)
            inbox.keep(alias, owner, key, result=kept, outputs=None)
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


def _owners(name: str, endpoint: Endpoint) -> tuple[str, tuple[str, ...]]:
    """Return the names that an endpoint's keys are kept under, now and before."""
    return as_key(name), tuple(map(as_key, endpoint.policies.aliases))


def log_duplicate(message: Message, endpoint: Endpoint) -> None:
    """Say that a message is not handled."""
    logger.info(
        "A message for %s is a duplicate and was not handled",
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
            return self._type.to_json(result)
        except MessageConversionError as error:
            msg = (
                f"{self._place} returned what cannot be kept for duplicates of the "
                f"message: {error} Annotate what it returns with a type that JSON can "
                f"be made into, or return None."
            )
            raise UnexpectedResult(msg) from error

    def read(self, text: bytes | None) -> Any:
        """Return the result that was kept."""
        return None if text is None else self._type.from_json(text)


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
