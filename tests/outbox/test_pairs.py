"""A factory and an action for one message: what has run is what is named."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from django_cqrs import Registry, Retry, event_handler, message
from django_cqrs.channels import channels
from django_cqrs.documents import DocumentStore, document
from django_cqrs.modelling import aggregate
from django_cqrs.outbox.models import DeadLetter, JournalEntry, OutboxMessage
from django_cqrs.outbox.store import replay
from django_cqrs.signals import message_failed, message_handled

pytestmark = pytest.mark.django_db


@message("pairs.heard")
@dataclass(frozen=True)
class Heard:
    sku: str
    fails: bool = False


@aggregate(identifier="sku")
@document("pairs.product")
@dataclass
class Product:
    sku: str
    heard: int = 0

    @event_handler(channel="outbox", name="pairs.begin")
    @classmethod
    def begin(cls, event: Heard) -> Product:
        if event.fails:
            raise ArithmeticError
        return cls(event.sku)

    @event_handler(retry=Retry(attempts=1), name="pairs.hear", ordering_key="sku")
    def hear(self, event: Heard) -> None:
        self.heard += 1
        if event.fails:
            raise ArithmeticError


@pytest.fixture
def registry(settings) -> Registry:
    settings.DJANGO_CQRS = {
        "JOURNAL": timedelta(days=1),
        "CHANNELS": {"outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}},
    }
    made = Registry()
    made.add(Product)
    return made


def work(registry: Registry) -> None:
    channel: Any = channels["outbox"]
    while True:
        try:
            if not channel.run(registry=registry):
                return
        except ArithmeticError:
            continue


@pytest.mark.parametrize(
    ("is_there", "ran"), [(False, "pairs.begin"), (True, "pairs.hear")]
)
@pytest.mark.parametrize("fails", [False, True], ids=["handled", "failed"])
def test_what_has_run_is_what_is_named(registry, is_there, ran, fails):
    """In the journal, by the signals and on the dead letter."""
    told: list[str] = []

    def receive(endpoint: str, **_kwargs: Any) -> None:
        told.append(endpoint)

    if is_there:
        DocumentStore(Product).upsert("x", Product("x"))
    message_handled.connect(receive)
    message_failed.connect(receive)
    try:
        registry.event_bus.publish(Heard("x", fails))
        [waiting] = OutboxMessage.objects.values_list("endpoint", flat=True)
        work(registry)
    finally:
        message_handled.disconnect(receive)
        message_failed.disconnect(receive)

    assert waiting == "pairs.begin"
    assert told == [ran]
    assert list(JournalEntry.objects.values_list("endpoint", flat=True)) == [ran]
    dead = list(DeadLetter.objects.values_list("endpoint", flat=True))
    assert dead == [ran] * fails


def test_a_dead_letter_of_the_action_holds_back_what_is_for_the_pair(registry):
    """It keeps the order of its key, and is replayed for the pair, as it was sent."""
    DocumentStore(Product).upsert("x", Product("x"))
    registry.event_bus.publish(Heard("x", fails=True))
    registry.event_bus.publish(Heard("x"))
    work(registry)
    assert DocumentStore(Product).get("x").heard == 0
    assert OutboxMessage.objects.count() == 1

    DocumentStore(Product).delete("x")
    letter = DeadLetter.objects.get()
    letter.payload = b'{"sku":"x","fails":false}'
    assert letter.endpoint == "pairs.hear"
    assert replay([letter], using="default") == 1
    work(registry)

    assert OutboxMessage.objects.count() == DeadLetter.objects.count() == 0
    assert DocumentStore(Product).get("x").heard == 1
