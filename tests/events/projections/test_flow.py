"""The test kit with streams and projections, inside a transaction that is rolled back."""

from typing import Annotated

import pytest
from django.test import TestCase

from django_cqrs import event_handler
from django_cqrs.events import Row, projection
from django_cqrs.exceptions import InvalidOption
from django_cqrs.testing import Flow
from tests.events.projections.support import OrderPaid, OrderPlaced, append, project
from tests.events.views.models import OrderRow

pytestmark = pytest.mark.django_db

calls: list[int] = []


@projection("inline", views=[OrderRow])
class FlowInline:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1


@projection("followed", channel="outbox", views=[OrderRow])
class FlowFollowed(FlowInline):
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1


@projection("counting", channel="outbox", views=[OrderRow])
class FlowCounting:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        calls.append(event.number)
        row.changes = len(calls)


def rows():
    return dict(OrderRow.objects.values_list("number", "changes").order_by("number"))


def test_e35_2_given_events_are_not_recorded_as_published():
    """They happened before: no handler is called, and the flow does not list them. [E35.2]"""
    heard = []

    @event_handler
    def hear(event: OrderPlaced):
        heard.append(event.number)

    registry = project(hear, FlowInline)
    with Flow(registry=registry) as flow:
        flow.given("order-1", OrderPlaced(1), OrderPaid(1))
        append(registry, OrderPlaced(2))

    assert heard == [2]
    assert flow.published == [OrderPlaced(2)]
    assert flow.events_of("order-1") == [OrderPlaced(1), OrderPaid(1), OrderPlaced(2)]
    assert flow.events_of("order-2") == []


class E35(TestCase):
    def test_e35_3_projections_run_and_are_rebuilt_in_a_test_case(self):
        """Own appends are settled for oneself, so that nothing has to be committed. [E35.3]"""
        registry = project(FlowFollowed)
        with Flow(registry=registry) as flow:
            flow.given("order-1", OrderPlaced(1), OrderPlaced(1))
            assert flow.project(FlowFollowed) == 2
            assert rows() == {1: 2}
            OrderRow.objects.update(changes=9)
            assert flow.rebuild("followed") == 2
        assert rows() == {1: 2}


def test_e35_3_an_inline_projection_gets_what_it_has_missed():
    """`project` of one that is inline is its backfill. [E35.3]"""
    with Flow(registry=project()) as flow:
        flow.given("order-1", OrderPlaced(1))
    with Flow(registry=project(FlowInline)) as flow:
        assert flow.project(FlowInline) == 1
        assert flow.project(FlowInline) == 0
    assert rows() == {1: 1}


def test_e35_3_views_that_replay_are_as_before():
    """The comparison leaves the rows, and the place of the projection, as they were. [E35.3]"""
    registry = project(FlowFollowed)
    with Flow(registry=registry) as flow:
        flow.given("order-1", OrderPlaced(1))
        flow.project(FlowFollowed)
        keys = list(OrderRow.objects.values_list("pk", "touched_at"))

        flow.assert_replays(FlowFollowed)

        assert list(OrderRow.objects.values_list("pk", "touched_at")) == keys
        assert flow.project(FlowFollowed) == 0


def test_e35_3_a_row_that_differs_is_shown():
    """A handler that depends on anything but its events and rows is found. [E35.3]"""
    calls.clear()
    registry = project(FlowCounting)
    with Flow(registry=registry) as flow:
        flow.given("order-1", OrderPlaced(7))
        flow.project("counting")

        with pytest.raises(AssertionError) as caught:
            flow.assert_replays(FlowCounting)

    said = str(caught.value)
    assert "The projection 'counting' does not make the same rows again" in said
    assert "- OrderRow(number=7, " in said
    assert "changes=1" in said.split("+", maxsplit=1)[0]
    assert "changes=2" in said.split("+")[1]


def test_what_is_no_projection_is_refused():
    """The error names it."""
    with (
        Flow(registry=project()) as flow,
        pytest.raises(InvalidOption, match="is not a"),
    ):
        flow.assert_replays(OrderRow)
