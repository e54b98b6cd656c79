"""The names of streams: a category and a key, as in ``shop.basket-7f3``."""

from __future__ import annotations

from typing import Final, NamedTuple

from django_cqrs.exceptions import InvalidOption
from django_cqrs.plain import has_surrogate

LONGEST_CATEGORY: Final = 100
LONGEST_KEY: Final = 255
LONGEST_NAME: Final = LONGEST_CATEGORY + LONGEST_KEY


class StreamName(NamedTuple):
    """The name of a stream; one without a key is a stream of its own."""

    category: str
    key: str = ""

    def __str__(self) -> str:
        """Return the name as users write it."""
        return f"{self.category}-{self.key}" if self.key else self.category


def stream_name(given: str | StreamName) -> StreamName:
    """
    Return the name of a stream, in its parts.

    Args:
        given: the name: its category stands before the first hyphen.

    Raises:
        InvalidOption: it is not a name, or too long for its column.

    """
    if isinstance(given, StreamName):
        return given
    fault = _fault_in(given)
    if fault:
        shown = given if len(str(given)) <= LONGEST_NAME else f"{str(given)[:40]}..."
        msg = f"{shown!r} cannot be the name of a stream: {fault}."
        raise InvalidOption(msg)
    category, _, key = given.partition("-")
    return StreamName(category, key)


def _fault_in(given: str) -> str:
    """Return the reason why a value is not the name of a stream, or nothing."""
    if not isinstance(given, str):
        return "it is not a string"
    category, hyphen, key = given.partition("-")
    if not category:
        return "it has no category before its first hyphen" if hyphen else "it is empty"
    if hyphen and not key:
        return "nothing follows its hyphen"
    if len(given) > LONGEST_NAME:
        return f"it has more than {LONGEST_NAME} characters"
    if len(category) > LONGEST_CATEGORY:
        return f"its category has more than {LONGEST_CATEGORY} characters"
    if len(key) > LONGEST_KEY:
        return f"its key has more than {LONGEST_KEY} characters"
    if category.endswith(" ") or key.endswith(" "):
        # MariaDB ignores a space at the end.
        return "its category or its key ends with a space"
    if "\0" in given or has_surrogate(given):
        return "it has a character that databases cannot store"
    return ""
