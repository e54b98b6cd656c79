"""Send drawn messages of every class there and back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hypothesis import given, settings
from hypothesis.errors import ResolutionFailed, Unsatisfiable

from django_cqrs.annotations import path_of
from django_cqrs.buses.registries import Registry
from django_cqrs.buses.registries import registry as projects
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.exceptions import CQRSError
from django_cqrs.testing.comparison import first_difference
from django_cqrs.testing.machines.strategies import EVERY_CHECK, messages_of


def check_payloads(
    *classes: type,
    registry: Registry | None = None,
    examples: int = 100,
    skip: Collection[type] = (),
) -> None:
    """
    Check that drawn messages of every class come back from JSON as they were.

    Args:
        *classes: the classes; by default all message classes of the registry.
        registry: the registry; by default the project's.
        examples: how many messages of each class are drawn.
        skip: the classes that are left out.

    Raises:
        AssertionError: some did not, or could not be drawn. Its text names each class
            with the smallest message that was found.

    """
    types = (registry if registry is not None else projects).routes.types
    faults = []
    for cls in classes or list(types):
        if cls not in skip:
            fault = _fault_of(cls, types, examples)
            if fault is not None:
                faults.append(f"{path_of(cls)}: {fault}")
    if faults:
        listed = "\n".join(f"  {each}" for each in faults)
        msg = f"Messages of these classes do not come back from a channel:\n{listed}"
        raise AssertionError(msg)


class _Lost(Exception):
    """A message that did not come back; its text says why."""


def _fault_of(cls: type, types: MessageTypes, examples: int) -> str | None:
    """Return why messages of a class do not come back, None if they do."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=EVERY_CHECK,
        report_multiple_bugs=False,
    )
    @given(messages_of(cls))
    def go_there_and_back(message: Any) -> None:
        try:
            name, text = types.encode(message)
            back = types.decode(name.name, text, name.version)
        except CQRSError as error:
            raise _Lost(f"{message!r}: {error}") from error
        mismatch = first_difference(message, back)
        if mismatch is not None:
            raise _Lost(f"{message!r} came back with a difference: {mismatch}.")

    try:
        go_there_and_back()
    except _Lost as lost:
        return str(lost)
    except (ResolutionFailed, Unsatisfiable) as error:
        reason = " ".join(str(error).split())
        return (
            f"no message can be drawn, so register a strategy for its types with "
            f"hypothesis.strategies.register_type_strategy(): {reason}"
        )
    return None
