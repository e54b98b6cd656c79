from __future__ import annotations

from queuebie import message_registry

from tests.benchmarks.queuebie_shop.messages.numbers import AddOne


@message_registry.register_command(command=AddOne)
def add_one(context: AddOne) -> None:
    context.to + 1  # not returned: a handler may return messages alone
