"""The shop's pages: they ask queries and dispatch commands, without models."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from django.contrib import messages
from django.http import Http404
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from common.errors import BAD_INPUT, Refused
from django_cqrs import command_bus, query_bus
from django_cqrs.events import projections
from django_cqrs.exceptions import AggregateNotFound, MessageConversionError
from fulfilment.messages import GetFulfilment
from orders.errors import UnknownOrder
from orders.messages import CancelOrder, GetOrder, ListOrders
from orders.status import OrderStatus
from payments.api import payments
from payments.messages import GetPayment, PayOrder
from shipping.messages import GetShipment, ShipOrder
from storefront.forms import OrderForm

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse


def home(request: HttpRequest) -> HttpResponse:
    """Explain the example, and show its latest orders."""
    context = {
        "latest": query_bus.ask(ListOrders(size=6), route="order.list"),
        "customers": query_bus.ask(6, route="customer.revenue"),
    }
    return render(request, "storefront/home.html", context)


def order_list(request: HttpRequest) -> HttpResponse:
    """Show the orders; the query reads its fields out of the address."""
    filters = {name: value for name, value in request.GET.items() if value}
    try:
        page = query_bus.ask(filters, route="order.list")
    except MessageConversionError as error:
        raise Http404(str(error)) from error
    context = {
        "page": page,
        "statuses": OrderStatus,
        "status": filters.get("status", ""),
    }
    return render(request, "storefront/order_list.html", context)


def order_detail(request: HttpRequest, order_id: int) -> HttpResponse:
    """Show what each app knows of an order."""
    try:
        order = query_bus.ask(GetOrder(order_id))
    except UnknownOrder as error:
        raise Http404(str(error)) from error
    trail = query_bus.ask(order_id, route="audit.trail")
    context = {
        "order": order,
        "payment": payments.find(GetPayment(order_id)),
        "shipment": query_bus.ask(GetShipment(order_id)),
        "fulfilment": query_bus.ask(GetFulfilment(order_id)),
        # What one command caused shares a correlation id.
        "steps": [
            list(step) for _, step in groupby(trail, attrgetter("correlation_id"))
        ],
    }
    return render(request, "storefront/order_detail.html", context)


def place_order(request: HttpRequest) -> HttpResponse:
    """Place an order, or show the errors beside the fields."""
    form = OrderForm(request.POST or None)
    if form.is_valid():
        try:
            order_id = command_bus.dispatch(form.payload(), route="order.place")
        except BAD_INPUT as error:
            form.add_problems(error)
        else:
            messages.success(request, "The order is placed.")
            return redirect("storefront:order", order_id)
    return render(request, "storefront/order_form.html", {"form": form})


def sales(request: HttpRequest) -> HttpResponse:
    """Show what was sold on each day, and how far the view is behind."""
    context = {
        "rows": query_bus.ask(route="sales.by_day"),
        "status": projections.status("sales"),
    }
    return render(request, "storefront/sales.html", context)


@require_POST
def cancel_order(request: HttpRequest, order_id: int) -> HttpResponse:
    """Cancel an order by a button."""
    cancel = partial(command_bus.dispatch, CancelOrder(order_id))
    return press(request, order_id, cancel, "The order is cancelled.")


@require_POST
def pay_order(request: HttpRequest, order_id: int) -> HttpResponse:
    """Pay an order by a button; what follows is the saga's affair."""
    pay = partial(payments.pay, PayOrder(order_id))
    return press(request, order_id, pay, "The order is paid, and on its way.")


@require_POST
def ship_order(request: HttpRequest, order_id: int) -> HttpResponse:
    """Ship an order by a button."""
    ship = partial(command_bus.dispatch, ShipOrder(order_id))
    return press(request, order_id, ship, "The order is on its way.")


def press(
    request: HttpRequest, order_id: int, send: Callable[[], object], done: str
) -> HttpResponse:
    """Send the command behind a button, and say how it went."""
    try:
        send()
    except AggregateNotFound as error:
        # The order itself, and not something that its command has led to.
        if not error.at_entrance:
            raise
        raise Http404(f"order {order_id} does not exist") from error
    except Refused as refusal:
        messages.error(request, f"Refused: {refusal}.")
    else:
        messages.success(request, done)
    return redirect("storefront:order", order_id)
