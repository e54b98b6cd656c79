"""Tags: the subjects of an event beside its stream, such as ``course:42``."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

from django_cqrs.annotations import marks_of, path_of
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import message_name_of
from django_cqrs.plain import as_plain, has_surrogate

LONGEST_TAG: Final = 255


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """
    A mark of a field of an event: its value is a tag of the event.

    ``course_id: Annotated[UUID, Tag("course")]`` gives ``course:7f3...``. A list makes
    a tag of each item, None makes none.
    """

    name: str

    def __post_init__(self) -> None:
        """
        Refuse a name that cannot be told from the value.

        Raises:
            InvalidOption: it is empty, or has a colon.

        """
        if not isinstance(self.name, str) or not self.name or ":" in self.name:
            msg = f"Tag() takes a name without a colon, not {self.name!r}."
            raise InvalidOption(msg)


def tag_of(name: str, value: Any) -> str:
    """
    Return the tag of a value.

    Raises:
        InvalidOption: it cannot be stored.

    """
    if isinstance(value, enum.Enum):
        value = value.value
    return checked_tag(f"{name}:{as_plain(value)}")


def checked_tag(tag: str) -> str:
    """
    Return a tag unchanged.

    Raises:
        InvalidOption: it cannot be stored.

    """
    fault = ""
    if not isinstance(tag, str) or not tag:
        fault = "it is not text"
    elif len(tag) > LONGEST_TAG:
        fault = f"it has {len(tag)} characters, and {LONGEST_TAG} are allowed"
        tag = f"{tag[:40]}..."
    elif "\0" in tag or has_surrogate(tag):
        fault = "it has a character that databases cannot store"
    if fault:
        msg = f"{tag!r} cannot be a tag: {fault}."
        raise InvalidOption(msg)
    return tag


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """
    Return tags that are given by hand.

    Raises:
        InvalidOption: one of them cannot be stored.

    """
    if isinstance(tags, str):
        msg = f"tags= takes a list of tags, not the text {tags!r}."
        raise InvalidOption(msg)
    return tuple(map(checked_tag, tags))


def tags_of(event: Any, given: tuple[str, ...] = ()) -> tuple[str, ...]:
    """
    Return the tags of an event, each once.

    Args:
        event: the event.
        given: tags that it gets beside those of its class and its fields.

    Raises:
        InvalidOption: one of them cannot be stored.

    """
    own, fields = _tagging_of(type(event))
    if not fields:
        return tuple(dict.fromkeys((*own, *given))) if own or given else ()
    found = [*own, *given]
    for attribute, name in fields:
        found += _tags_in(name, getattr(event, attribute, None))
    return tuple(dict.fromkeys(found))


def _tags_in(name: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, (list, tuple, set, frozenset)):
        # A set has no order of its own.
        each = value if isinstance(value, (list, tuple)) else sorted(value, key=str)
        for one in each:
            yield from _tags_in(name, one)
    else:
        yield tag_of(name, value)


Tagging = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
"""The tags of a class itself, and its marked attributes, each with a tag's name."""

_known: WeakKeyDictionary[type, Tagging] = WeakKeyDictionary()


def _tagging_of(cls: type) -> Tagging:
    found = _known.get(cls)
    if found is None:
        named = message_name_of(cls)
        own = () if named is None else checked_tags(named.tags)
        found = _known[cls] = own, tuple(tagged_fields(cls))
    return found


def tagged_fields(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a class that are marked, each with its tag's name."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        msg = f"An annotation of {path_of(cls)} cannot be evaluated: {error}."
        raise InvalidOption(msg) from error
    for attribute, hint in hints.items():
        for mark in marks_of(hint):
            if isinstance(mark, Tag):
                yield attribute, mark.name
