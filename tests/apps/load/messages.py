from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    number: int
    fails: bool = False


@dataclass(frozen=True, slots=True)
class ARecord:
    number: int
    fails: bool = False


@dataclass(frozen=True, slots=True)
class Confirm:
    number: int


@dataclass(frozen=True, slots=True)
class Recorded:
    number: int
    fails: bool


@dataclass(frozen=True, slots=True)
class Count:
    pass
