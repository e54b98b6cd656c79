"""Model classes of other packages as aggregates."""

from __future__ import annotations

import pghistory
import pytest
from django_fsm import TransitionNotAllowed

from django_cqrs import Registry, event_handler
from tests.tried.shop.models import (
    Book,
    CardPayment,
    Order,
    OrderPaid,
    Payment,
    PayOrder,
    PlaceOrder,
    Rename,
    Retitle,
    Room,
    Settle,
)

pytestmark = pytest.mark.django_db(transaction=True)


def registry_of(*handlers):
    registry = Registry()
    for each in handlers:
        registry.add(each)
    return registry


def test_a_transition_of_django_fsm_is_a_handler():
    """
    django-fsm-2: a transition may be a command handler. It runs on the locked row, and
    what it records is published after the state is saved.
    """
    seen = []

    @event_handler(name="paid")
    def paid(event: OrderPaid) -> None:
        seen.append((event.order_id, Order.objects.get().state))

    bus = registry_of(Order, paid).command_bus
    bus.dispatch(PlaceOrder(7))
    bus.dispatch(PayOrder(7))

    assert seen == [(7, "paid")]
    with pytest.raises(TransitionNotAllowed):
        bus.dispatch(PayOrder(7))
    assert seen == [(7, "paid")]


def test_a_tracker_of_model_utils_sees_what_the_handler_changed():
    """django-model-utils: FieldTracker follows the object that a command loads."""
    bus = registry_of(Order).command_bus
    bus.dispatch(PlaceOrder(7))

    assert Order.objects.get().tracker.has_changed("state") is False


def test_a_polymorphic_child_acts_as_itself():
    """
    django-polymorphic: a command for the parent loads the child, and the child's
    override is what runs.
    """
    Payment.objects.create(payment_id=1)
    CardPayment.objects.create(payment_id=2, card="4111")
    bus = registry_of(Payment).command_bus

    assert bus.dispatch(Settle(1)) == "payment"
    assert bus.dispatch(Settle(2)) == "card"
    stored = dict(Payment.objects.values_list("payment_id", "settled_by"))
    assert stored == {1: "payment", 2: "card"}
    assert CardPayment.objects.get().card == "4111"


def test_pghistory_writes_an_event_for_what_a_command_changed():
    """
    django-pghistory: its trigger writes in the transaction of the command, with its
    context, and a failed command leaves no event.
    """
    Room.objects.create(room_id=1, name="a")
    bus = registry_of(Room).command_bus

    with pghistory.context(reason="moving"):
        bus.dispatch(Rename(1, "b"))
    with pytest.raises(ValueError, match="bad"):
        bus.dispatch(Rename(1, "bad"))

    events = Room.pgh_event_model.objects.order_by("pgh_id")
    assert [each.name for each in events] == ["a", "b"]
    assert events.last().pgh_context.metadata == {"reason": "moving"}


def test_lifecycle_hooks_and_simple_history_follow_the_save_of_a_command():
    """
    django-lifecycle runs its hooks and django-simple-history writes its row at the save
    of a command; neither stays of a command that failed.
    """
    Book.objects.create(book_id=1, title="a")
    bus = registry_of(Book).command_bus

    bus.dispatch(Retitle(1, "b"))
    with pytest.raises(ValueError, match="bad"):
        bus.dispatch(Retitle(1, "bad"))

    assert Book.objects.get().hooked == 1
    titles = Book.history.order_by("history_id").values_list("title", flat=True)
    assert list(titles) == ["a", "b"]
