from __future__ import annotations

from queuebie import message_registry

from tests.benchmarks.queuebie_shop.messages.numbers import Added


@message_registry.register_event(event=Added)
def note(context: Added) -> None:
    pass
