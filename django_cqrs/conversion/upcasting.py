"""Convert stored payloads of an older shape to the present one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from django_cqrs.exceptions import FieldError, MessageConversionError

Upcaster = Callable[..., dict[str, Any] | None]
U = TypeVar("U", bound=Upcaster)


class _Registered(NamedTuple):
    """An upcaster, and whether it takes the headers as well."""

    function: Upcaster
    takes_headers: bool


_upcasters: dict[tuple[str, int], _Registered] = {}


def upcaster(name: str, /, *, version: int) -> Callable[[U], U]:
    """
    Register a function that converts stored payloads of one version to the next.

    The function takes the JSON form of that version, as a dict, and returns that of the
    next version::

        @upcaster("order.placed", version=1)
        def add_currency(payload: dict[str, Any]) -> dict[str, Any]:
            return {**payload, "currency": "EUR"}

    A function with a second parameter also gets the headers that were stored. One that
    returns None drops the payload: an event of a stream is then left out, anything else
    is refused. A version without an upcaster is assumed to have the shape of the next.
    A ValueError, ArithmeticError, LookupError or TypeError that the function raises is
    an error of the payload.

    Args:
        name: the message's name, or the alias that it was stored under.
        version: the version of the payload that the function takes.

    """
    if not isinstance(name, str) or not isinstance(version, int):
        msg = (
            f"@upcaster takes a name and a version: "
            f'@upcaster("a.b", version=1), not {name!r}.'
        )
        raise TypeError(msg)

    def register(function: U) -> U:
        _upcasters[name, version] = _Registered(function, _takes_headers(function))
        return function

    return register


def _takes_headers(function: Upcaster) -> bool:
    """Return whether a function requires a second argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it is written in C
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        each
        for each in parameters
        if each.kind in kinds and each.default is inspect.Parameter.empty
    ]
    return len(needed) > 1


def declared_upcasters() -> list[tuple[str, int, Upcaster]]:
    """Return the name, the version and the function of each upcaster."""
    return [
        (name, version, each.function) for (name, version), each in _upcasters.items()
    ]


def has_upcasters(names: tuple[str, ...], version: int, wanted: int) -> bool:
    """Return whether upcasters apply between a stored version and the present one."""
    return any(
        (name, step) in _upcasters for name in names for step in range(version, wanted)
    )


_NO_HEADERS: Mapping[str, Any] = {}


def upcast(
    payload: Any,
    names: tuple[str, ...],
    version: int,
    wanted: int,
    headers: Mapping[str, Any] = _NO_HEADERS,
) -> Any:
    """
    Convert the JSON form of a payload from its version to the present one.

    Args:
        payload: the payload, as stored.
        names: the message's name and its aliases; first the one that it was stored
            under.
        version: the version that it was stored in.
        wanted: the present version.
        headers: the headers that were stored with it.

    Returns:
        The JSON form; None if an upcaster drops it.

    Raises:
        MessageConversionError: an upcaster refuses it.

    """
    __traceback_hide__ = True
    for step in range(version, wanted):
        registered = next(
            (_upcasters[name, step] for name in names if (name, step) in _upcasters),
            None,
        )
        if registered is None:
            continue
        function, takes_headers = registered
        try:
            payload = function(payload, headers) if takes_headers else function(payload)
        except (ValueError, ArithmeticError, LookupError, TypeError) as error:
            reason = str(error) or type(error).__name__
            fault = f"its upcaster from version {step} rejects it ({reason})"
            errors = [FieldError("", fault, "upcaster")]
            raise MessageConversionError(names[0], errors) from error
        if payload is None:
            break
    return payload
