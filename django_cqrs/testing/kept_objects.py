"""Objects in memory, and messages as a channel would restore them."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from django_cqrs.annotations import is_value_type
from django_cqrs.conversion.adapters import adapter_of
from django_cqrs.conversion.stored import to_stored_json
from django_cqrs.messages import Message
from django_cqrs.modelling.identifiers import Values

Key = tuple[type, str]
"""The class of an object, and its identifier as text."""


@dataclasses.dataclass(slots=True, eq=False)
class KeptObject:
    """An object in memory."""

    instance: Any
    revision: int = 0
    """The number of its changes."""
    events: list[Message] = dataclasses.field(default_factory=list)
    """Its events, if it is made of them."""


def text_of(values: Values) -> str:
    """Return an identifier as text."""
    return repr([str(value) for value in values])


def there_and_back(payload: Any) -> Any:
    """
    Return the message that a channel would give its handler.

    Raises:
        MessageConversionError: it could not be restored unchanged.

    """
    cls = type(payload)
    if payload is None:
        return None
    adapter = adapter_of(Any if is_value_type(cls) else cls)
    text = to_stored_json(adapter, payload)
    return payload if is_value_type(cls) else adapter.from_stored_json(text)


class ObjectMemory(Protocol):
    """The memory of a world, for a storage of its objects."""

    kept: dict[Key, KeptObject]
    stale: set[Key]
    last: Key | None

    def look(self, key: Key) -> KeptObject | None:
        """Return an object in memory, None if there is none."""
        ...

    def note_last(self, key: Key) -> None:
        """Note the object of a message."""
        ...
