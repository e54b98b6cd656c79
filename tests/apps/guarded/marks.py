"""Interceptors that stand in no handlers module: one is imported there."""

from __future__ import annotations

from dataclasses import dataclass

from django_cqrs.interception import Marker, before, pointcut

log: list[str] = []


@dataclass(frozen=True)
class RequiresKey(Marker):
    name: str


@before(pointcut.marked(RequiresKey), precedence=-5)
def check_key(key: RequiresKey) -> None:
    log.append(f"key {key.name}")


@before(pointcut.handler("guarded.*"))
def forgotten() -> None: ...
