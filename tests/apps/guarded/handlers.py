from __future__ import annotations

from django_cqrs import EventBus, command_handler, event_handler
from django_cqrs.interception import Proceed, around, pointcut, pre_send
from tests.apps.guarded import marks as marks  # noqa: PLC0414 - for the test to reach
from tests.apps.guarded.marks import RequiresKey, check_key, log
from tests.apps.guarded.messages import CloseVault, VaultClosed

__all__ = ["check_key"]


@around(pointcut.message(CloseVault) & ~pointcut.handler("*.reopen"), precedence=-1500)
def watch(proceed: Proceed) -> object:
    log.append("watch")
    return proceed()


@pre_send(pointcut.message(VaultClosed))
def stamp() -> None:
    log.append("stamp")


@RequiresKey("vault")
@command_handler
def close(command: CloseVault, events: EventBus) -> None:
    log.append("close")
    events.publish(VaultClosed(command.number))


@command_handler("vault.reopen")
def reopen(command: CloseVault) -> None:
    log.append("reopen")


@event_handler(channel="guard")
def report(event: VaultClosed) -> None:
    log.append("report")
