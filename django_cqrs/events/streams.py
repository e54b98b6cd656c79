"""The streams of classes: their categories, and the keys of their objects."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from django.apps import apps

from django_cqrs.annotations import name_of_type, path_of
from django_cqrs.events.appliers import STREAM, appliers_of
from django_cqrs.events.rules import StreamRule
from django_cqrs.events.stream_names import (
    LONGEST_CATEGORY,
    LONGEST_KEY,
    StreamName,
    stream_name,
)
from django_cqrs.exceptions import InvalidIdentifier, InvalidOption
from django_cqrs.modelling.identifiers import Part, Values, plain
from django_cqrs.problems import Problem

C = TypeVar("C", bound=type)


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOptions:
    """The declaration of a class's streams."""

    category: str
    snapshot_every: int | None = None
    snapshot_version: int = 1
    natural_key: str | None = None


def event_stream(
    category: str,
    /,
    *,
    snapshot_every: int | None = None,
    snapshot_version: int = 1,
    natural_key: str | None = None,
) -> Callable[[C], C]:
    """
    Give the objects of an aggregate or a saga a stream of events each.

    A class with methods marked with ``@applies`` is its events, and nothing else is
    stored. A model keeps its row, and what it records is appended to its stream.

    Args:
        category: unique in the project, such as ``"shop.basket"``. It has no hyphen.
        snapshot_every: the number of events after which the state is stored as well, so
            that loading reads only the events after it.
        snapshot_version: a number to change when functions that appliers call change:
            snapshots with another number are passed over.
        natural_key: an attribute whose value is unique among the objects, besides their
            identifiers.

    Subclasses do not inherit the category.

    Raises:
        TypeError: the category is not a text, or the attribute is not a name.
        InvalidOption: a number is not positive.

    """
    if not isinstance(category, str) or not category:
        msg = (
            f'@event_stream takes the category: @event_stream("shop.basket"), not '
            f"{category!r}."
        )
        raise TypeError(msg)
    if natural_key is not None and not isinstance(natural_key, str):
        msg = f"natural_key= takes the name of an attribute, not {natural_key!r}."
        raise TypeError(msg)
    numbers = {"snapshot_every": snapshot_every, "snapshot_version": snapshot_version}
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or number < 1):
            msg = f"{name}= takes a number from 1, not {number!r}."
            raise InvalidOption(msg)
    options = StreamOptions(category, snapshot_every, snapshot_version, natural_key)

    def decorate(cls: C) -> C:
        if not isinstance(cls, type):
            msg = f"@event_stream decorates a class, not {cls!r}."
            raise TypeError(msg)
        setattr(cls, STREAM, options)
        return cls

    return decorate


def declared_stream_of(cls: type) -> StreamOptions | None:
    """Return the declaration of ``@event_stream`` on exactly this class, if any."""
    return cls.__dict__.get(STREAM)


def stream_of(cls: type) -> StreamOptions | None:
    """Return the streams of a class; by default its category is ``app_label.Name``."""
    declared = declared_stream_of(cls)
    if declared is not None or not appliers_of(cls).own:
        return declared
    config = apps.get_containing_app_config(cls.__module__)
    if config is None or cls.__qualname__ != cls.__name__:
        return None
    return StreamOptions(f"{config.label}.{cls.__name__}")


_holders: WeakValueDictionary[str, type] = WeakValueDictionary()


def stream_problems(cls: type) -> Iterator[Problem]:
    """Yield the faults of the category of a class."""
    fault = _fault_of(cls)
    if fault:
        yield Problem(
            StreamRule.BAD_STREAM,
            f"{name_of_type(cls)} has no streams: {fault}.",
            'Give it a category of its own with @event_stream("app.name").',
            cls,
        )


def _fault_of(cls: type) -> str:
    options = stream_of(cls)
    if options is None:
        config = apps.get_containing_app_config(cls.__module__)
        if config is None:
            return "it does not belong to an installed app, which would name them"
        return "it is not defined at the top of its module, which would name them"
    category = options.category
    if "-" in category:
        return f"its category {category!r} has a hyphen, which ends a category"
    if len(category) > LONGEST_CATEGORY:
        return f"its category has more than {LONGEST_CATEGORY} characters"
    try:
        stream_name(category)
    except InvalidOption as error:
        return f"its category cannot be used ({str(error).rstrip('.')})"
    holder = _holders.setdefault(category, cls)
    if holder is not cls and path_of(holder) == path_of(cls):
        _holders[category] = cls  # the same class, defined again
    elif holder is not cls:
        return f"{path_of(holder)} has the category {category!r} as well"
    return ""


def category_of(cls: type) -> str:
    """
    Return the category of the streams of a class.

    Raises:
        InvalidOption: it has none.

    """
    options = stream_of(cls)
    if options is None:
        msg = (
            f"{name_of_type(cls)} has no category of streams: give it one with "
            '@event_stream("app.name").'
        )
        raise InvalidOption(msg)
    return options.category


# -------------------------------------------------------------------------------- keys

_SEVERAL: Final = "["


def key_of(values: Values) -> str:
    """
    Return the key of an object's stream: its identifier as text.

    It is a JSON array of texts for an identifier of several parts.

    Raises:
        InvalidIdentifier: a part is missing, or the text is too long or cannot be
            compared by every database.

    """
    if None in values or not values:
        msg = "None is not an identifier: an applier of the first event must set it."
        raise InvalidIdentifier(msg)
    texts = [str(plain(value)) for value in values]
    key = texts[0]
    if len(texts) > 1:
        key = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    # MariaDB ignores a space at the end.
    if not key or len(key) > LONGEST_KEY or key.endswith(" "):
        msg = (
            f"The identifier of an object with a stream has 1 to {LONGEST_KEY} "
            f"characters and does not end with a space: {key!r}."
        )
        raise InvalidIdentifier(msg)
    return key


def values_in(key: str, parts: Sequence[Part]) -> Values:
    """Return the parts of an identifier from the key of a stream."""
    texts = [key] if len(parts) == 1 else json.loads(key)
    return tuple(part.convert(text) for part, text in zip(parts, texts, strict=True))


def stream_named(cls: type, values: Values) -> StreamName:
    """
    Return the name of the stream of an object.

    Args:
        cls: its class.
        values: the parts of its identifier.

    Raises:
        InvalidOption: the class has no streams.
        InvalidIdentifier: as for :func:`key_of`.

    """
    return StreamName(category_of(cls), key_of(values))
