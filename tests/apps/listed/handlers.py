from __future__ import annotations

from django_cqrs import command_handler, event_handler, query_handler, service
from tests.apps.listed.messages import DeskEvent, DeskOpened, OpenDesk


@command_handler
@command_handler("desk.open", using="other")
def open_desk(command: OpenDesk) -> int:
    return 1


@command_handler("desk.reopen", name="desks.reopen", atomic=False)
def reopen(command: OpenDesk) -> None: ...


@query_handler("desk.list")
def list_desks() -> list[str]:
    return []


@service
class Notifier:
    @event_handler(priority=-5)
    def mail(self, event: DeskOpened) -> None: ...

    @event_handler("desk.*")
    def count(self) -> None: ...


@event_handler(priority=10)
def audit(event: DeskEvent) -> None: ...
