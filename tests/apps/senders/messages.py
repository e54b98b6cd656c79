from dataclasses import dataclass


@dataclass(frozen=True)
class Lend:
    book: int = 0


@dataclass(frozen=True)
class Return:
    book: int = 0


@dataclass(frozen=True)
class Lent:
    book: int = 0


@dataclass(frozen=True)
class FindBook:
    book: int = 0
