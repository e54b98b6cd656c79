"""A process whose messages fail for good under the eyes of Sentry, at its defaults."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from django_cqrs import Registry, Retry, Sensitive, command_handler, message
from tests.outbox.watched import SECRET

registry = Registry()


class Refused(Exception):
    pass


@message("reported.pay")
@dataclass(frozen=True)
class Pay:
    card: Annotated[str, Sensitive()]
    way: str = "refused"


@message("reported.greet")
@dataclass(frozen=True)
class Greet:
    name: str


@registry.add
@command_handler(
    name="reported.pay", channel="outbox", retry=Retry(attempts=2, delay=0)
)
def pay(command: Pay) -> None:
    raise _error_of(command)


def _error_of(command: Pay) -> Exception:
    kinds = {"refused": Refused, "unknown": LookupError}
    return kinds[command.way](f"the card {command.card} was refused")


@registry.add
@command_handler(name="reported.greet", channel="outbox", retry=Retry(attempts=1))
def greet(command: Greet) -> None:
    raise Refused(f"{command.name} is not here")


SENT = [
    Pay(SECRET),
    Pay(SECRET),
    Pay(SECRET, "unknown"),
    Greet("ada"),
    Greet("jo"),
]


def main():
    """Send, let a worker fail, and print all that Sentry would have sent away."""
    import django
    import sentry_sdk
    from sentry_sdk.transport import Transport

    items = []

    class Kept(Transport):
        def capture_envelope(self, envelope):
            items.extend(envelope.items)

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Kept)
    django.setup()

    from django_cqrs.outbox.worker import Bounds, Worker

    for each in SENT:
        registry.command_bus.dispatch(each)
    Worker(registry, ["outbox"], using="default", bounds=Bounds(until_empty=True)).run()
    texts = [item.payload.get_bytes().decode() for item in items]
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
