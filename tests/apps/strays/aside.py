from __future__ import annotations

from django_cqrs import command_handler


@command_handler("strays.tidy")
def tidy() -> None: ...
