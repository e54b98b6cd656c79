"""The calls of tasks as JSON: arguments, return values, times."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.utils import timezone

from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.exceptions import MessageConversionError
from django_cqrs.outbox.models import StoredTaskResult
from django_cqrs.outbox.tasks.djangos import TaskError, normalize_json
from django_cqrs.times import as_sent


@dataclasses.dataclass(frozen=True, slots=True)
class TaskCall:
    """The payload of a task's message: its arguments, and the options of the call."""

    args: list[Any]
    kwargs: dict[str, Any]
    queue_name: str = "default"
    run_after: str | None = None


CALL: Final = PayloadType(TaskCall)


def payload_of(
    path: str,
    args: list[Any],
    kwargs: dict[str, Any],
    queue_name: str,
    run_after: datetime | None,
) -> bytes:
    """
    Return the arguments of a call as JSON text, verified to be read by a worker.

    Raises:
        TypeError: an argument has a type without a JSON form.
        ValueError: an argument has a value without one.

    """
    document = {"args": args, "kwargs": kwargs, "queue_name": queue_name}
    if run_after is not None:
        document["run_after"] = run_after.isoformat()
    try:
        text = as_json(document)
        CALL.from_stored_json(text)
    except (TypeError, ValueError, RecursionError) as error:
        where, fault = _culprit(args, kwargs, error)
        msg = (
            f"The task {path} cannot be enqueued, because {where} has no JSON form: "
            f"{fault}. Give text, numbers, True, False, None, or lists and dicts of "
            "these."
        )
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(msg) from error
    return text


def _culprit(
    args: list[Any], kwargs: dict[str, Any], error: Exception
) -> tuple[str, str]:
    """Return the place of the first argument without a JSON form, and its fault."""
    named = {f"its argument {place}": each for place, each in enumerate(args, 1)}
    named |= {f"its argument {name!r}": each for name, each in kwargs.items()}
    for place, value in named.items():
        try:
            CALL.from_stored_json(as_json({"args": [value], "kwargs": {}}))
        except (TypeError, ValueError, RecursionError) as own:
            return place, fault_of(own)
    return "an argument", fault_of(error)


def fault_of(error: Exception) -> str:
    """Return why a value has no JSON form, by the exception that says so."""
    if isinstance(error, UnicodeEncodeError):
        return "a text has an incomplete character (a lone surrogate)"
    if isinstance(error, (MessageConversionError, RecursionError)):
        return "it is nested too deeply"
    return str(error)


def as_json(value: Any) -> bytes:
    """
    Return a value as JSON text in UTF-8.

    Raises:
        TypeError: a part has a type without a JSON form.
        ValueError: a part has a value without one.
        RecursionError: it is nested too deeply.

    """
    # ASCII would hide incomplete characters, which the reader refuses.
    return json.dumps(
        normalize_json(value),
        allow_nan=False,
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()


def shown(moment: datetime) -> datetime:
    """Return a time as Django's own tasks have it: with its zone, if it uses zones."""
    moment = as_sent(moment)
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def listed(text: bytes | memoryview[int]) -> list[Any]:
    """Return the values of a column with a JSON list."""
    found: list[Any] = json.loads(bytes(text))
    return found


def errors_of(row: StoredTaskResult) -> list[Any]:
    """Return the errors of a row, as Django's results have them."""
    return [TaskError(**each) for each in listed(row.errors)]
