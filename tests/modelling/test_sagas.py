"""Sagas: started, moved, asked, ended, and late."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import models
from django.db.migrations.state import ModelState
from django.db.migrations.writer import MigrationWriter

from django_cqrs import command_bus, event_bus, query_bus
from django_cqrs.exceptions import AggregateAlreadyExists, AggregateNotFound
from django_cqrs.models import RecordsEvents
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.testing.flow import Flow
from tests.modelling.messages import (
    HurryOrder,
    LateNews,
    OrderPacked,
    OrderPaid,
    OrderPlaced,
    Watched,
)
from tests.modelling.models import Fulfilment, Sent, Watch

pytestmark = [pytest.mark.django_db, pytest.mark.database]


class TestLife:
    def test_started_moved_queried(self):
        """An event starts it, events and commands move it, a query asks it. [M14.1]"""
        event_bus.publish(OrderPlaced(7))
        event_bus.publish(OrderPaid(7))
        command_bus.dispatch(HurryOrder(7))

        process = Fulfilment.objects.get()
        assert (process.order_id, process.is_paid, process.fate) == (7, True, "hurried")
        assert query_bus.ask(route="fulfilment.fate", aggregate_id=7) == "hurried"

    def test_raised_when_missing(self):
        """A message for a process that never began fails its sender ... [M14.1]"""
        with pytest.raises(AggregateNotFound) as raised:
            event_bus.publish(OrderPaid(7))

        assert str(raised.value) == (
            "Fulfilment.on_paid was not called: there is no Fulfilment with order_id=7."
        )

    def test_dropped_when_missing(self):
        """... or is dropped where the handler says so: no call, no save, no output. [M14.1]"""
        with Flow() as flow:
            event_bus.publish(OrderPacked(7))

        assert flow.sent == []
        assert not Fulfilment.objects.exists()

    def test_a_second_start(self):
        """One that is there is not started again."""
        event_bus.publish(OrderPlaced(7))
        with pytest.raises(AggregateAlreadyExists):
            event_bus.publish(OrderPlaced(7))

    @pytest.mark.parametrize(
        "events", [[OrderPaid(7), OrderPacked(7)], [OrderPacked(7), OrderPaid(7)]]
    )
    def test_output_after_the_save(self, events):
        """What it returns is sent on, and its receiver reads the saved row. [M14.2]"""
        event_bus.publish(OrderPlaced(7))
        for event in events:
            event_bus.publish(event)

        assert list(Sent.objects.values_list("command", "was_saved")) == [
            ("ship", True)
        ]

    def test_none_sends_nothing(self):
        """A process that has nothing to ask for asks for nothing. [M14.2]"""
        event_bus.publish(OrderPlaced(7))
        event_bus.publish(OrderPaid(7))

        assert not Sent.objects.exists()

    def test_the_bus_inside_a_handler(self):
        """What a handler dispatches is handled before the saga is saved. [M14.3]"""
        with Flow() as flow:
            event_bus.publish(OrderPlaced(7))
            flow.advance(hours=24)
            flow.run("outbox")

        assert list(Sent.objects.values_list("command", "was_saved")) == [
            ("cancel", False)
        ]
        assert Fulfilment.objects.get().fate == "cancelled"

    def test_two_sagas_on_one_event(self):
        """Each is found, called and saved alone. [M14.5]"""
        event_bus.publish(OrderPlaced(7))
        event_bus.publish(Watched(7))

        assert Fulfilment.objects.count() == 1
        assert Watch.objects.get().times == 2


class TestTimeouts:
    def test_not_before_it_is_due(self):
        """A delayed handler runs once, when it is due, and not before. [M14.4]"""
        with Flow() as flow:
            event_bus.publish(OrderPlaced(7))
            assert flow.run("outbox") == 0
            flow.advance(hours=23)
            assert flow.run("outbox") == 0
            flow.advance(hours=1)
            assert flow.run("outbox") == 1
            assert flow.run("outbox") == 0

        assert Fulfilment.objects.get().fate == "cancelled"

    def test_what_it_finds_decides(self):
        """A process that was paid is not cancelled. [M14.4]"""
        with Flow() as flow:
            event_bus.publish(OrderPlaced(7))
            event_bus.publish(OrderPaid(7))
            flow.advance(hours=24)
            flow.run("outbox")

        assert Fulfilment.objects.get().fate == "open"

    def test_timers_are_visible(self):
        """The row that waits says which saga it is for."""
        event_bus.publish(OrderPlaced(7))

        assert OutboxMessage.objects.get().subject == "modelling.Fulfilment:7"

    @pytest.mark.parametrize("route", ["fulfilment.finish", "fulfilment.forget"])
    def test_timers_end_with_the_saga(self, route):
        """One that is completed, or deleted, takes back what waits for it alone."""
        event_bus.publish(OrderPlaced(7))
        event_bus.publish(OrderPlaced(8))
        command_bus.dispatch(route=route, aggregate_id=7)

        (left,) = OutboxMessage.objects.all()
        assert left.subject == "modelling.Fulfilment:8"


class TestMigrations:
    def test_only_lasting_names_stand_in_migrations(self):
        """The bases of a saga's model, written into a project, are public permanently."""
        state = ModelState.from_model(Fulfilment)

        assert state.bases == (RecordsEvents, models.Model)
        text, imports = MigrationWriter.serialize(RecordsEvents)
        assert text == "django_cqrs.models.RecordsEvents"
        assert imports == {"import django_cqrs.models"}


class TestTombstones:
    @pytest.fixture
    def completed(self):
        event_bus.publish(OrderPlaced(7))
        process = Fulfilment.objects.get()
        process.fate = "done"
        process.complete()
        process.save()

    def test_the_row_stays(self, completed):
        """A completed saga is a tombstone: it is not started again, and answers. [M14.7]"""
        with pytest.raises(AggregateAlreadyExists):
            event_bus.publish(OrderPlaced(7))

        assert query_bus.ask(route="fulfilment.fate", aggregate_id=7) == "done"

    def test_a_late_timeout_is_ignored(self, completed):
        """What was sent with a delay no longer has anything to do. [M14.7]"""
        with Flow() as flow:
            flow.advance(hours=24)
            assert flow.run("outbox") == 1

        assert Fulfilment.objects.get().fate == "done"
        assert not Sent.objects.exists()

    def test_another_late_message_raises(self, completed):
        """``on_missing`` decides: by default it is an error. [M14.7]"""
        with pytest.raises(AggregateNotFound) as raised:
            event_bus.publish(LateNews(7))

        assert str(raised.value) == (
            "Fulfilment.on_late_news was not called: the Fulfilment with order_id=7 "
            "is completed."
        )

    def test_or_is_ignored(self, completed):
        """``on_missing="ignore"`` drops it. [M14.7]"""
        event_bus.publish(OrderPacked(7))

        assert not Fulfilment.objects.get().is_packed


class TestRoutes:
    def test_mermaid_shows_what_leads_where(self, capsys):
        """An arrow goes on from a handler to the command that its result is. [B16.2]"""
        call_command("cqrs_routes", "--app", "modelling", "--format", "mermaid")

        lines = capsys.readouterr().out.splitlines()
        names = {
            line.split("[")[0].split("(")[0].strip(): line.split('"')[1]
            for line in lines
            if '"' in line
        }
        arrows = [line.split() for line in lines if "==>" in line]
        assert [(names[a], names[b]) for a, _, b in arrows] == [
            ("tests.modelling.models.Fulfilment.on_packed", "order.ship"),
            ("tests.modelling.models.Fulfilment.on_paid", "order.ship"),
        ]

    def test_a_factory_and_an_action_explained(self, capsys):
        """The explanation says what each of the two is called on. [B16.2]"""
        call_command("cqrs_routes", "CountVisit")

        out = capsys.readouterr().out
        assert "is a command. Its handlers are a factory and an action:" in out
        assert (
            "it makes the PageCount if the one identified by the message does not "
            "exist;" in out
        )
        assert "it is called on the PageCount identified by the message;" in out
