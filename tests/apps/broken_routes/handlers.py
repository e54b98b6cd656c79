from __future__ import annotations

from django_cqrs import command_handler


@command_handler("broken.one")
def sound() -> None: ...


@command_handler("broken.two")
def broken(title: str, retries: int) -> None: ...
