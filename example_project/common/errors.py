"""The errors of the shop's rules."""

from __future__ import annotations

from typing import NamedTuple

from django_cqrs.exceptions import MessageConversionError


class Refused(Exception):
    """
    A rule of the shop forbids what was asked.

    The text is written for the customer. `field` says which part of the message
    is at fault, as a dotted path such as ``lines.0.quantity``; empty means the
    message as a whole.
    """

    def __init__(self, reason: str, *, field: str = "") -> None:
        super().__init__(reason)
        self.field = field


# The errors that a caller must expect: a message cannot be read, or a rule refuses it.
BAD_INPUT = (MessageConversionError, Refused)


class Problem(NamedTuple):
    """One thing that is wrong with a message, and where."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


def problems(error: MessageConversionError | Refused) -> list[Problem]:
    """List what is wrong in one form, whichever of the two it was."""
    if isinstance(error, Refused):
        return [Problem(error.field, str(error))]
    return [Problem(problem.path, problem.message) for problem in error.errors]
