"""Mistakes in the declarations of projections are checks."""

import pytest

from django_cqrs import event_handler
from django_cqrs.checks import check_registry
from django_cqrs.events import Tag, projection
from tests.events.projections.support import OrderPlaced, project
from tests.events.views.models import Customer, Entry, OrderLine, OrderRow, Owned

pytestmark = pytest.mark.django_db


def made(name="checked", **options):
    @projection(name, **options)
    class Checked:
        @event_handler
        def placed(self, event: OrderPlaced): ...

    return Checked


def ids_and_texts(*targets):
    return [
        (each.id.removeprefix("django_cqrs_events."), each.msg)
        for each in check_registry(project(*targets))
        if each.id.startswith("django_cqrs_events.")
    ]


def only(*targets):
    [(found, text)] = ids_and_texts(*targets)
    return found, text


def test_e20_4_a_sound_projection_has_no_mistakes():
    """Inline, on a channel and on demand. [E20.4]"""
    assert (
        ids_and_texts(
            made("a", views=[OrderRow]),
            made("b", channel="outbox", shards=4, on_failure="park"),
            made("c", on_demand=True, partition_by=Tag("order"), on_failure="park"),
            made("d", sources=["order", "order-1"], partition_by="stream"),
        )
        == []
    )


def test_e20_4_a_name_twice():
    """They would share one position. [E20.4]"""
    found, text = only(made("a"), made("a", channel="outbox"))

    assert found == "E006"
    assert "are both the projection 'a'" in text


def test_e20_4_a_view_with_two_owners():
    """A rebuild of one would empty the rows of the other. [E20.4]"""
    found, text = only(made("a", views=[OrderRow]), made("b", views=[OrderRow]))

    assert found == "E007"
    assert "projections.OrderRow is a view of the projections 'a' and 'b'" in text


def test_a_view_that_another_model_points_to():
    """Its rows are deleted by a rebuild, unless that model is a view as well."""
    found, text = only(made(views=[Entry]))

    assert found == "E007"
    assert "projections.Owned has a foreign key to projections.Entry" in text
    assert ids_and_texts(made(views=[Entry, Owned, OrderLine, Customer])) == []


@pytest.mark.parametrize(
    ("alias", "said"),
    [("nobody", "'nobody'"), ("commit", "No worker serves")],
)
def test_e20_4_a_channel_without_a_worker(settings, alias, said):
    """It is unknown, or keeps nothing for a worker. [E20.4]"""
    on_commit = {"BACKEND": "django_cqrs.channels.OnCommitChannel"}
    settings.DJANGO_CQRS = {"CHANNELS": {"commit": on_commit}}
    found, text = only(made(channel=alias))

    assert found == "E009"
    assert said in text


@pytest.mark.parametrize(
    "options", [{"shards": 2}, {"partition_by": "number"}, {"start": "now"}]
)
def test_e20_4_inline_with_an_option_of_followers(options):
    """It handles each stream from its first event on. [E20.4]"""
    found, text = only(made(**options))

    assert found == "E010"
    assert next(iter(options)) in text


def test_e20_4_parking_without_an_index():
    """The events of a parked partition are found by stream or by tag. [E20.4]"""
    found, text = only(made(channel="outbox", partition_by="number", on_failure="park"))

    assert found == "E011"
    assert "parks partitions by 'number'" in text


@pytest.mark.parametrize("source", [OrderPlaced, "", 7], ids=repr)
def test_e20_4_a_source_that_is_not_event_sourced(source):
    """A class without streams, and what is no name of one. [E20.4]"""
    found, _ = only(made(sources=[source]))

    assert found == "E012"


def test_a_view_in_another_database(settings):
    """Rows and positions are not committed together there."""
    settings.DATABASE_ROUTERS = [Router()]

    found, text = only(made(views=[OrderRow]))

    assert found == "W001"
    assert "is in the database 'other', and the events are in 'default'" in text


class Router:
    def db_for_write(self, model, **hints):
        return "other" if model is OrderRow else None
