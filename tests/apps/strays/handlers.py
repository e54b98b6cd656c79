from __future__ import annotations

from django_cqrs import command_handler
from tests.apps.strays import aside as aside  # noqa: PLC0414 - for the test to reach


class Forgotten:
    @command_handler("strays.close")
    def close(self) -> None: ...
