"""Senders that no code shows: an app offers them to the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Final

from django_cqrs.declaration.declarations import Kind


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """One message that something sends by itself, such as a clock."""

    sender: str
    """The name of the sender for people."""
    target: type | str
    """The class of the message, or its routing key."""
    kind: Kind
    way: str
    """One of the ways of the graph, such as ``schedule``."""


offers: Final[list[Callable[[Any], Iterable[Offer]]]] = []


def offer_senders(offer: Callable[[Any], Iterable[Offer]]) -> None:
    """
    Add senders to the graph, once.

    Args:
        offer: takes a registry, and returns what is sent to its handlers.

    """
    if offer not in offers:
        offers.append(offer)
