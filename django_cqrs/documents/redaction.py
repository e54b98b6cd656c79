"""Documents as operators see them: without sensitive values."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from django_cqrs import buses
from django_cqrs.conversion.masking import MASK, redactor_of
from django_cqrs.documents.collections import Collection, collections_called

NOT_SHOWN: Final = "(not shown)"
"""The replacement of values that may be sensitive."""


class StoredContent(Protocol):
    """The displayed part of a document's row."""

    # Any: for a model, a type checker may compare fields with these instead of values.
    collection: Any
    key: Any
    content: Any
    shape: Any


def text_of(document: StoredContent) -> str:
    """
    Return a document's content as JSON, one value a line, its sensitive fields masked.

    Content of another version than its class is shown as far as the class has the same
    fields in the same places. Content of a collection with an unknown type is not
    shown.
    """
    content, _ = _masked(document)
    if content is _UNKNOWN:
        return (
            f"{NOT_SHOWN} This process does not know the class of this collection, so "
            "it cannot tell which values are sensitive."
        )
    return json.dumps(content, indent=2, ensure_ascii=False)


def key_of(document: StoredContent) -> str:
    """
    Return a document's key in the form for operators.

    Parts from sensitive fields are masked. The key of a collection with an unknown type
    is not shown.
    """
    key: str = document.key
    if not may_hide(document.collection, document.shape):
        return key
    content, hidden = _masked(document)
    if content is _UNKNOWN:
        return NOT_SHOWN
    return MASK if content == MASK else redactor_of(hidden)(key)


def may_hide(collection: str, shape: int) -> bool:
    """Return whether documents of a collection may have values to be masked."""
    buses.registry.routes  # noqa: B018 - it finds the classes
    known = collections_called(collection)
    return not known or any(_is_masked(each, shape) for each in known)


def _is_masked(known: Collection, shape: int) -> bool:
    return known.shape.masking.is_marked or shape != known.name.version


_UNKNOWN: Final = object()


def _masked(document: StoredContent) -> tuple[Any, list[Any]]:
    """Return the content without its sensitive values, and the masked paths."""
    buses.registry.routes  # noqa: B018 - it finds the classes
    content: Any = document.content
    known = collections_called(document.collection)
    if not known:
        return _UNKNOWN, []
    hidden: list[Any] = []

    def mask(_path: object, value: Any) -> str:
        hidden.append(value)
        return MASK

    for each in known:
        if _is_masked(each, document.shape):
            try:
                content = each.shape.masking.mask(content, mask)
            except RecursionError:
                content = MASK
    return content, hidden
