"""
The queries of the orders app. Its commands are methods of the order, in models.py.

Queries only read, and return plain rows, never models. The interceptor at the end keeps
two commands for the same order from a deadlock.
"""

from __future__ import annotations

from django.core.paginator import Paginator
from django.db.models import Count, Q, Sum

from common.money import Money
from django_cqrs import query_handler
from django_cqrs.interception import before, pointcut
from fulfilment.messages import PaymentDue
from orders.errors import UnknownOrder
from orders.messages import (
    CustomerRow,
    GetOrder,
    LineDetail,
    ListOrders,
    OrderDetail,
    OrderPage,
    OrderRow,
    ProductRow,
    RevenueRow,
)
from orders.models import Customer, Order, Product
from orders.status import OrderStatus
from payments.messages import PayOrder
from shipping.messages import ShipOrder


@query_handler("order.list")
def list_orders(query: ListOrders) -> OrderPage:
    """Show one page of orders, the newest first."""
    orders = (
        Order.objects.select_related("customer")
        .annotate(items=Sum("lines__quantity"))
        .order_by("-placed_on", "-pk")
    )
    if query.status is not None:
        orders = orders.filter(status=query.status)
    page = Paginator(orders, query.size).get_page(query.page)
    return OrderPage(
        rows=tuple(
            OrderRow(
                order_id=order.pk,
                reference=order.reference,
                customer=order.customer.name,
                placed_on=order.placed_on,
                items=order.items,
                status=OrderStatus(order.status),
                total=order.total,
            )
            for order in page
        ),
        number=page.number,
        pages=page.paginator.num_pages,
        orders=page.paginator.count,
    )


@query_handler
def get_order(query: GetOrder) -> OrderDetail:
    """Show one order with its lines."""
    order = (
        Order.objects.select_related("customer")
        .prefetch_related("lines__product")
        .filter(pk=query.order_id)
        .first()
    )
    if order is None:
        raise UnknownOrder(f"order {query.order_id} does not exist")
    return OrderDetail(
        order_id=order.pk,
        reference=order.reference,
        customer=order.customer.name,
        email=order.customer.email,
        placed_on=order.placed_on,
        status=OrderStatus(order.status),
        total=order.total,
        lines=tuple(
            LineDetail(
                sku=line.product.sku,
                product=line.product.name,
                quantity=line.quantity,
                unit_price=Money(line.unit_price),
                total=Money(line.unit_price) * line.quantity,
            )
            for line in order.lines.all()
        ),
    )


@query_handler("customer.revenue")
def revenue_by_customer(limit: int = 10) -> list[RevenueRow]:
    """Name the customers who ordered for the most money; cancelled orders apart."""
    counted = ~Q(orders__status=OrderStatus.CANCELLED)
    customers = (
        Customer.objects.annotate(
            order_count=Count("orders", filter=counted),
            revenue=Sum("orders__total_amount", filter=counted),
        )
        .filter(order_count__gt=0)
        .order_by("-revenue", "name")
    )
    return [
        RevenueRow(customer.name, customer.order_count, Money(customer.revenue))
        for customer in customers[:limit]
    ]


@query_handler("product.list")
def list_products() -> list[ProductRow]:
    """Show the catalogue."""
    return [
        ProductRow(product.sku, product.name, product.price)
        for product in Product.objects.all()
    ]


@query_handler("customer.list")
def list_customers() -> list[CustomerRow]:
    """Show who may order."""
    return [
        CustomerRow(customer.email, customer.name)
        for customer in Customer.objects.all()
    ]


@before(
    pointcut.message(PayOrder)
    | pointcut.message(ShipOrder)
    | pointcut.message(PaymentDue)
)
def lock_order(message: PayOrder | ShipOrder | PaymentDue) -> None:
    """
    Lock the order until the transaction ends.

    One handler begins with the payment, one with the parcel, one with the saga, and
    each reaches the rows of the others: two at a time would be a deadlock. A command
    that cancels an order locks it anyway.
    """
    Order.objects.select_for_update().filter(pk=message.order_id).first()
