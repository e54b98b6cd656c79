"""django-tenants: one schema for each tenant."""

from __future__ import annotations

from typing import Annotated

import pytest
from django_tenants.utils import schema_context

from django_cqrs import Header, Registry, command_handler
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.worker import Bounds, Worker
from tests.tried.ledger.models import Entry
from tests.tried.tenants.models import Tenant

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_background_handler_enters_the_schema_that_a_header_names():
    """
    django-tenants: messages wait in the shared schema. A handler in the background
    enters the schema of its tenant itself, by a header that passes on with the message.
    """
    for name in ("acme", "widgets"):
        Tenant.objects.create(schema_name=name, name=name)

    @command_handler("note", name="note", channel="outbox")
    def note(text: str, tenant: Annotated[str, Header("tenant")]) -> None:
        with schema_context(tenant):
            Entry.objects.create(text=text)

    registry = Registry()
    registry.add(note)
    with schema_context("acme"):
        registry.command_bus.dispatch("a", route="note", headers={"tenant": "acme"})
    registry.command_bus.dispatch("b", route="note", headers={"tenant": "widgets"})
    assert OutboxMessage.objects.count() == 2

    bounds = Bounds(until_empty=True)
    Worker(registry, ["outbox"], using="default", bounds=bounds).run()

    found = {}
    for name in ("acme", "widgets"):
        with schema_context(name):
            found[name] = list(Entry.objects.values_list("text", flat=True))
    assert found == {"acme": ["a"], "widgets": ["b"]}
    assert OutboxMessage.objects.count() == 0
