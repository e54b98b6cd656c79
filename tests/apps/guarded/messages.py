from __future__ import annotations

from dataclasses import dataclass

from django_cqrs import message


@message("guarded.close")
@dataclass(frozen=True, slots=True)
class CloseVault:
    number: int = 0


@message("guarded.closed")
@dataclass(frozen=True, slots=True)
class VaultClosed:
    number: int = 0
