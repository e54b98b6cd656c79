"""An aggregate is loaded alone, so that no neighbour's deferred field is saved."""

from __future__ import annotations

import django
import pytest
from django.db import models

from django_cqrs import Registry, command_handler
from django_cqrs.modelling import Repository
from tests.modelling.deals import Deal

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Fetch modes are of Django 6.1.")
def test_an_aggregate_does_not_save_what_a_neighbour_has_fetched(monkeypatch):
    """
    Under FETCH_PEERS a deferred field is fetched for all objects of one query.

    A repository loads each object by a query of its own. What a queryset writes to
    another object meanwhile stays, whichever of them has fetched the field.
    """

    class Deferring(models.Manager):
        def get_queryset(self):
            rows = super().get_queryset().defer("total")
            return rows.fetch_mode(models.FETCH_PEERS)

    deals = Deferring()
    deals.model, deals.name = Deal, "objects"
    monkeypatch.setattr(Deal._meta, "default_manager", deals)
    first, second = (Deal.objects.create(buyer=name, total=1) for name in "ab")
    seen = []

    @command_handler("deals.rename")
    def rename(name: str, repository: Repository[Deal]) -> None:
        one, other = repository.find(first.pk), repository.find(second.pk)
        assert one is not None
        assert other is not None
        seen.append((one.total, "total" in other.get_deferred_fields()))
        models.QuerySet(Deal).filter(pk=other.pk).update(total=5)
        other.buyer = name
        repository.save(other)

    registry = Registry()
    registry.add(rename)
    registry.command_bus.dispatch("z", route="deals.rename")

    assert seen == [(1, True)]
    kept = models.QuerySet(Deal).filter(pk=second.pk).values_list("buyer", "total")
    assert list(kept) == [("z", 5)]
