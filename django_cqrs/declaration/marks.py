"""Marks in ``Annotated``: the sources of parameters' values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """``Annotated[int, Header("executor_id")]``: that header, converted."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Depends:
    """
    ``Annotated[Gateway, Depends(open_gateway)]``: the result of the factory.

    It is called once per message, its own parameters are filled like a handler's, and a
    generator resumes after the message, as in ``contextlib``.
    """

    factory: Callable[..., Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """``Annotated[Mailer, Service()]``: an instance from the service resolver."""
