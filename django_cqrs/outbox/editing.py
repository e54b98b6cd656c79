"""Edit a dead letter's payload by hand, without seeing its sensitive values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Final

from django_cqrs import buses
from django_cqrs.annotations import dotted
from django_cqrs.channels.channel import Envelope
from django_cqrs.conversion.masking import MASK, Path, redactor_of, without_input
from django_cqrs.exceptions import (
    CQRSError,
    FieldError,
    InvalidHandler,
    MessageConversionError,
    UnknownEndpoint,
    UnknownMessage,
)
from django_cqrs.outbox.models import DeadLetter
from django_cqrs.outbox.redaction import NO_JSON, RedactionRule, rule_for
from django_cqrs.outbox.store.dead_letters import replay
from django_cqrs.outbox.store.rows import envelope_of

LONGEST: Final = 1_000_000
"""The maximum number of bytes of a payload to be edited by hand."""

WHOLE: Final = "the whole payload"
"""The change of a payload whose old version cannot be read."""


class NotEditable(CQRSError):
    """The right payload of a dead letter is unknown, so it cannot be edited."""


@dataclasses.dataclass(frozen=True, slots=True)
class EditedPayload:
    """A payload that its handler accepts."""

    payload: bytes
    paths: list[str]
    """The paths that differ from the old one, never with a value."""


class PayloadEditor:
    """
    The payload of one dead letter, edited in a form.

    In the form a numbered mask stands for a sensitive value. An unchanged mask keeps
    the value; a value written over it replaces it.
    """

    def __init__(self, letter: DeadLetter) -> None:
        """
        Read a dead letter.

        Raises:
            NotEditable: it is too long, or its class, or a handler with its endpoint's
                name, does not exist here.

        """
        self._letter = letter
        self._raw = bytes(letter.payload)
        self._rule = _rule_for(letter, self._raw)
        self._kept: dict[str, tuple[Path, Any]] = {}
        """The original place and value of each mask."""
        self._own: set[str] = set()
        """Texts that only look like a mask."""
        self.note = ""
        """The reason why the form starts empty, if it does."""
        self.text = ""
        """The initial text of the form."""
        try:
            self._document = json.loads(self._raw)
            self._is_json = True
            shown = self._rule.mask(self._document, self._keep)
            self._own = {each for each in _texts(shown) if MASK in each}
            self._own.difference_update(self._kept)
            self.text = _written(shown, indent=2)
        except (ValueError, RecursionError):
            self._document, self._is_json = None, False
            self._kept.clear()
            if self._rule.is_strict:
                self.note = NO_JSON
            else:
                self.text = self._raw.decode(errors="replace")

    def _keep(self, path: Path, value: Any) -> str:
        mask = f"{MASK} {len(self._kept) + 1}"
        self._kept[mask] = path, value
        return mask

    def edited(self, text: str) -> EditedPayload:
        """
        Return the payload of a text in the form.

        Raises:
            MessageConversionError: the handler does not accept it, or a mask was moved;
                with all errors.

        """
        try:
            return self._edited(_parsed(text, self._letter))
        except RecursionError:
            raise self._error(
                FieldError("", "it is nested too deeply", "depth")
            ) from None

    def _edited(self, edited: Any) -> EditedPayload:
        document = self._restored(edited)
        if self._is_json and _written(document) == _written(self._document):
            fault = "nothing was changed; to replay it unchanged, choose Replay"
            raise self._error(FieldError("", fault, "unchanged"))
        payload = _written(document).encode()
        redact = redactor_of([value for _, value in self._kept.values()])
        try:
            buses.registry.unpack(_envelope_of(self._letter, payload))
        except MessageConversionError as error:
            errors = [
                each._replace(message=redact(without_input(each.message)))
                for each in error.errors
            ]
            raise MessageConversionError(error.target, errors) from None
        except UnknownMessage as error:
            raise self._error(FieldError("", str(error), "unknown")) from None
        except Exception as error:
            fault = f"its conversion fails with {type(error).__name__}"
            raise self._error(FieldError("", fault, "broken")) from error
        return EditedPayload(payload, self._changed(document))

    def _restored(self, edited: Any) -> Any:
        """Return JSON with the values of its masks."""
        errors: list[FieldError] = []
        restored: list[Path] = []

        def walk(value: Any, path: Path) -> Any:
            if isinstance(value, dict):
                for key in value:
                    if MASK in key and key not in self._own:
                        errors.append(_misplaced((*path, key)))
                return {key: walk(part, (*path, key)) for key, part in value.items()}
            if isinstance(value, list):
                return [walk(part, (*path, n)) for n, part in enumerate(value)]
            if not isinstance(value, str) or MASK not in value or value in self._own:
                return value
            place, old = self._kept.get(value, (None, None))
            if place is None or _without_numbers(place) != _without_numbers(path):
                errors.append(_misplaced(path))
                return value
            restored.append(path)
            return old

        document = walk(edited, ())
        hidden = set(_hidden(self._rule, document))
        errors += [
            _misplaced(path)
            for path in restored
            if not any(path[:length] in hidden for length in range(len(path) + 1))
        ]
        if errors:
            raise self._error(*errors)
        return document

    def _changed(self, document: Any) -> list[str]:
        if not self._is_json:
            return [WHOLE]
        hidden = {
            *_hidden(self._rule, self._document),
            *_hidden(self._rule, document),
        }
        paths = _differences(self._document, document, (), hidden)
        return [dotted(path) or WHOLE for path in paths]

    def _error(self, *errors: FieldError) -> MessageConversionError:
        return _error_of(self._letter, *errors)


def replay_edited(letter: DeadLetter, edited: EditedPayload, *, using: str) -> bool:
    """
    Put a dead letter back with another payload, and otherwise as it was sent.

    Args:
        letter: of the database `using`.
        edited: its new payload.
        using: the alias of the database.

    Returns:
        Whether it still existed. Somebody may have replayed or deleted it.

    """
    letter.payload = edited.payload
    return bool(replay([letter], using=using))


def _rule_for(letter: DeadLetter, raw: bytes) -> RedactionRule:
    """
    Return the sensitive fields of a payload that is to be edited.

    Raises:
        NotEditable: nothing could verify the result.

    """
    table = buses.registry.routes
    try:
        table.endpoint_named(letter.endpoint)
        if letter.name:
            own = table.types.name_of(table.types.class_of(letter.name))
            if letter.version > own.version:
                msg = (
                    f"It has version {letter.version}, but {own.name!r} has version "
                    f"{own.version} here: deploy the newer code first."
                )
                raise NotEditable(msg)
    except (UnknownEndpoint, UnknownMessage, InvalidHandler) as error:
        raise NotEditable(str(error)) from error
    rule = rule_for(letter)
    if rule.reason:
        raise NotEditable(rule.reason)
    if len(raw) > LONGEST:
        msg = f"Its payload has {len(raw)} bytes; the form takes at most {LONGEST}."
        raise NotEditable(msg)
    return rule


def _parsed(text: str, letter: DeadLetter) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fault = (
            f"it is not valid JSON: {error.msg}, line {error.lineno} column "
            f"{error.colno}"
        )
        code = "json_invalid"
        raise _error_of(letter, FieldError("", fault, code)) from None
    except (ValueError, RecursionError):  # a number of many digits, a deep list
        fault = "it is not readable JSON"
        raise _error_of(letter, FieldError("", fault, "json_invalid")) from None


def _error_of(letter: DeadLetter, *errors: FieldError) -> MessageConversionError:
    return MessageConversionError(letter.name or letter.endpoint, errors)


def _envelope_of(letter: DeadLetter, payload: bytes) -> Envelope:
    return envelope_of({**vars(letter), "payload": payload})


def _written(document: Any, indent: int | None = None) -> str:
    separators = (",", ": ") if indent else (",", ":")
    options: dict[str, Any] = {"indent": indent, "separators": separators}
    text = json.dumps(document, ensure_ascii=False, **options)
    # A lone surrogate is written as a JSON escape.
    is_text = not any("\ud800" <= sign <= "\udfff" for sign in text)
    return text if is_text else json.dumps(document, **options)


def _misplaced(path: Path) -> FieldError:
    fault = (
        "a mask only stands for the value at its own place; write the value, or "
        "leave the mask unchanged"
    )
    return FieldError(dotted(path), fault, "mask")


def _without_numbers(path: Path) -> Path:
    return tuple("*" if isinstance(each, int) else each for each in path)


def _hidden(rule: RedactionRule, document: Any) -> Iterator[Path]:
    found: list[Path] = []

    def keep(path: Path, _value: Any) -> str:
        found.append(path)
        return MASK

    rule.mask(document, keep)
    yield from found


def _differences(old: Any, new: Any, path: Path, hidden: set[Path]) -> Iterator[Path]:
    """Yield the paths of differences, none of them inside a hidden value."""
    if path not in hidden:
        if isinstance(old, dict) and isinstance(new, dict):
            for key in dict.fromkeys((*old, *new)):
                if key in old and key in new:
                    yield from _differences(old[key], new[key], (*path, key), hidden)
                else:
                    yield (*path, key)
            return
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for place, pair in enumerate(zip(old, new, strict=True)):
                yield from _differences(*pair, (*path, place), hidden)
            return
    if _written(old) != _written(new):
        yield path


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
