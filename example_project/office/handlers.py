"""
What the office app does, and none of it while a customer waits.

``channel="mail"`` stores the event with the order, in the order's own transaction;
``manage.py cqrs_worker mail`` handles it later. Each handler has its own copy: where
one fails and is tried again, the other is not.
"""

from __future__ import annotations

from datetime import timedelta

from django.core.mail import send_mail

from django_cqrs import QueryBus, Retry, command_handler, event_handler
from django_cqrs.schedules import cron, scheduled
from office.models import Invoice
from orders.messages import GetOrder, OrderPlaced


@event_handler(channel="mail")
def write_invoice(event: OrderPlaced) -> None:
    Invoice.objects.create(
        order_id=event.order_id, reference=event.reference, total=str(event.total)
    )


@event_handler(channel="mail", retry=Retry(attempts=2, delay=1, jitter=False))
def send_confirmation(event: OrderPlaced, queries: QueryBus) -> None:
    order = queries.ask(GetOrder(event.order_id))
    send_mail(
        subject=f"Your order {event.reference}",
        message=f"Thank you, {order.customer}. We will send goods for {event.total}.",
        from_email=None,
        recipient_list=[order.email],
    )


# The worker sends this command itself, once each morning, however many workers run.
@scheduled(
    cron("0 6 * * *", timezone="Europe/Berlin"),
    payload=lambda due: (due - timedelta(days=1)).date().isoformat(),
)
@command_handler("office.report", name="office.report", channel="mail")
def report(day: str) -> None:
    send_mail(
        subject=f"The shop until {day}",
        message=f"{Invoice.objects.count()} invoices have been written so far.",
        from_email=None,
        recipient_list=["owner@kettle-and-leaf.example"],
    )
