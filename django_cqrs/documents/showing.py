"""Documents as operators see them: without what is sensitive."""

from __future__ import annotations

import json

from django_cqrs import buses
from django_cqrs.documents.models import Document
from django_cqrs.documents.rows import rows_called
from django_cqrs.masking import MASK


def text_of(document: Document) -> str:
    """
    Return a document's content as JSON, one value a line, its sensitive fields masked.

    Content of another version than its class is shown as far as the class has the same
    in the same place. Where nothing here says what a collection holds, it is not shown.
    """
    buses.registry.routes  # noqa: B018 - it finds the classes
    content = document.content
    known = rows_called(document.collection)
    if not known:
        return (
            "(not shown) Nothing in this process says what the collection holds, so "
            "what is sensitive in it cannot be told."
        )
    for rows in known:
        masking = rows.shape.masking
        if masking.is_marked or document.shape != rows.name.version:
            try:
                content = masking.mask(content, lambda _path, _value: MASK)
            except RecursionError:
                content = MASK
    return json.dumps(content, indent=2, ensure_ascii=False)
