"""The rules of the pages, the order book and the management commands."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import TestCase, override_settings
from django.urls import reverse

from audit.models import AuditEntry
from common.testing import open_shop, stock_of
from django_cqrs import command_bus
from django_cqrs.events import event_store, projections
from django_cqrs.testing.flow import Flow
from fulfilment.models import Fulfilment
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from orders.models import Customer, Order, Product
from orders.status import OrderStatus
from payments.models import CreditAccount, Payment
from sales.models import SalesDay
from shipping.models import Shipment
from stock.messages import CountGoods
from stock.models import Shelf, StockLevel
from storefront.data import load_catalogue
from storefront.orderbook import COLUMNS, RefusedLine, import_lines, read_lines

if TYPE_CHECKING:
    from django.http import HttpResponse

ADA = "ada@mail.example"


def place(quantity: int = 1) -> int:
    return command_bus.dispatch(
        PlaceOrder(customer=ADA, lines=(OrderedItem("TEA", quantity),))
    )


class PageTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def test_home_says_what_this_is(self) -> None:
        """The root page explains itself, with and without orders."""
        self.assertContains(self.client.get("/"), "No orders yet")
        place()
        response = self.client.get("/")
        self.assertContains(response, "A shop made of commands, queries and events")
        self.assertContains(response, "See all 1 orders")

    def test_list_filters_and_turns_pages(self) -> None:
        """The address holds the filter and the page."""
        for _ in range(3):
            place()
        Order.objects.filter(pk=Order.objects.first().pk).update(status="shipped")

        shipped = self.client.get("/orders/?status=shipped")
        page = self.client.get("/orders/?size=2&page=2")

        self.assertContains(shipped, "1 shipped order,")
        self.assertContains(page, "Page 2 of 2")
        self.assertContains(page, "?size=2&amp;page=1")

    def test_list_refuses_nonsense(self) -> None:
        """An address that is not a valid query is answered with 404."""
        for address in ("?page=x", "?status=lost", "?size=0"):
            with self.subTest(address):
                response = self.client.get(f"/orders/{address}")
                self.assertContains(response, "Page not found", status_code=404)

    def test_detail_shows_what_every_app_knows(self) -> None:
        """Lines, payment, shipment and the trail stand on one page."""
        order_id = place()

        response = self.client.get(f"/orders/{order_id}/")

        for text in (
            "9.90 EUR",
            "authorised",
            "ready",
            "waiting for payment",
            "Order placed",
            "by system",
        ):
            self.assertContains(response, text)

    def test_unknown_orders(self) -> None:
        """No order, no page, and no button."""
        for method, address in (
            ("get", "/orders/0/"),
            ("get", f"/orders/{10**30}/"),
            ("post", "/orders/0/cancel/"),
            ("post", f"/orders/{10**30}/cancel/"),
        ):
            with self.subTest(address):
                response = getattr(self.client, method)(address)
                self.assertContains(response, "does not exist", status_code=404)

    def test_buttons_ask_for_a_post(self) -> None:
        """A link or a crawler changes nothing."""
        order_id = place()
        for name in ("cancel-order", "pay-order", "ship-order"):
            response = self.client.get(reverse(f"storefront:{name}", args=[order_id]))
            assert response.status_code == 405

    def test_pay(self) -> None:
        """The button pays the order, and the saga ships it."""
        order_id = place()

        response = self.client.post(f"/orders/{order_id}/pay/", follow=True)
        second = self.client.post(f"/orders/{order_id}/pay/", follow=True)

        self.assertContains(response, "The order is paid, and on its way.")
        self.assertContains(response, "Shipment sent")
        assert Order.objects.get().status == OrderStatus.SHIPPED
        self.assertContains(second, "has nothing to pay")

    def test_ship(self) -> None:
        """The button ships the order, and it has no button afterwards."""
        order_id = place()

        response = self.client.post(f"/orders/{order_id}/ship/", follow=True)

        self.assertContains(response, "The order is on its way.")
        self.assertNotContains(response, "Ship it unpaid")
        assert Order.objects.get().status == OrderStatus.SHIPPED

    def test_cancel(self) -> None:
        """The button cancels the order; a second press is refused in words."""
        order_id = place()

        first = self.client.post(f"/orders/{order_id}/cancel/", follow=True)
        second = self.client.post(f"/orders/{order_id}/cancel/", follow=True)

        self.assertContains(first, "The order is cancelled.")
        self.assertContains(second, "is cancelled already")

    def test_sales_come_from_a_worker(self) -> None:
        """The page says how far it is behind, and shows what the worker has done."""
        place(2)
        self.assertContains(self.client.get("/sales/"), "No worker has run yet.")

        with Flow() as flow:
            flow.run("views")
            response = self.client.get("/sales/")
            self.assertContains(response, "19.80 EUR")
            self.assertContains(response, "The table is up to date.")

            command_bus.dispatch(CancelOrder(place()))
            self.assertContains(self.client.get("/sales/"), "2 events behind")

    def test_who_did_it(self) -> None:
        """Every message of a request carries the user's name."""
        order_id = place()
        self.client.post(f"/orders/{order_id}/ship/")
        self.client.force_login(get_user_model().objects.create_user("grace"))
        self.client.post(f"/orders/{place()}/ship/")

        sent = AuditEntry.objects.filter(event="shipment sent")
        assert [entry.executor for entry in sent] == ["anonymous", "grace"]


class OrderFormTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def post(self, **data: str) -> HttpResponse:
        data = {"reference": "WEB-1", "customer": ADA, **data}
        return self.client.post("/orders/new/", data, follow=True)

    def row(self, row: int, sku: str, quantity: str) -> dict[str, str]:
        return {f"lines.{row}.sku": sku, f"lines.{row}.quantity": quantity}

    def assert_refused(self, response: HttpResponse, errors: dict) -> None:
        """The form came back with these errors, and nothing was written."""
        assert response.context["form"].errors == errors
        assert not Order.objects.exists()

    def test_places_an_order(self) -> None:
        """A good form leads to the order's page; empty rows are left out."""
        response = self.post(**self.row(1, "TEA", "2"))

        order = Order.objects.get()
        self.assertRedirects(response, f"/orders/{order.pk}/")
        self.assertContains(response, "The order is placed.")
        assert [line.quantity for line in order.lines.all()] == [2]

    def test_errors_of_conversion_stand_beside_their_fields(self) -> None:
        """All of them at once, in the rows where they were typed."""
        response = self.post(
            **self.row(0, "TEA", "1"),
            **self.row(2, "TEA", "two"),
            **self.row(3, "", "-1"),
        )

        errors = response.context["form"].errors
        assert set(errors) == {"lines.2.quantity", "lines.3.sku"}
        self.assertContains(response, 'value="two"')
        assert not Order.objects.exists()

    def test_errors_of_the_rules_stand_beside_their_fields(self) -> None:
        """A refusal by a handler looks like any other error of a field."""
        response = self.post(**self.row(2, "CUP", "4"))

        self.assert_refused(response, {"lines.2.quantity": ["only 3 of CUP left"]})

    def test_a_refusal_of_the_whole(self) -> None:
        """What speaks of no field stands above the form."""
        response = self.post(**self.row(0, "TEA", "11"))

        (error,) = response.context["form"].non_field_errors()
        assert error.startswith("108.90 EUR is more than the credit")
        assert not Order.objects.exists()

    def test_an_empty_form(self) -> None:
        """An order needs a customer and at least one item."""
        self.assert_refused(
            self.post(customer=""), {"customer": ["This field is required."]}
        )
        self.assert_refused(
            self.post(), {"__all__": ["an order needs at least one item"]}
        )

    def test_sent_twice_orders_once(self) -> None:
        """The form's reference is the order's."""
        self.post(**self.row(0, "TEA", "1"))
        response = self.post(**self.row(0, "TEA", "1"))

        self.assertContains(response, "order WEB-1 was placed before")
        assert Order.objects.count() == 1


class AdminTests(TestCase):
    def setUp(self) -> None:
        open_shop()
        self.order_id = place()
        projections.run("sales")
        self.client.force_login(get_user_model().objects.create_superuser("grace"))

    def test_every_page_opens(self) -> None:
        """All models are registered, and lists and forms can be looked at."""
        for model in (
            AuditEntry,
            CreditAccount,
            Customer,
            Fulfilment,
            Order,
            Payment,
            Product,
            SalesDay,
            Shipment,
            StockLevel,
        ):
            base = f"admin:{model._meta.app_label}_{model._meta.model_name}"
            row = model.objects.first()
            for address in (
                reverse(f"{base}_changelist"),
                reverse(f"{base}_change", args=[row.pk]),
            ):
                with self.subTest(address):
                    assert self.client.get(address).status_code == 200

    def test_cancels_through_the_bus(self) -> None:
        """The action sends commands, so goods and credit come back as well."""
        action = {"action": "cancel", "_selected_action": [self.order_id]}
        address = reverse("admin:orders_order_changelist")

        self.client.post(address, action)
        second = self.client.post(address, action, follow=True)

        assert Order.objects.get().status == OrderStatus.CANCELLED
        assert stock_of("TEA") == 50
        assert AuditEntry.objects.last().executor == "grace"
        self.assertContains(second, "is cancelled already")

    def test_changes_the_stock_through_the_bus(self) -> None:
        """The actions send commands; what they show is only a view of the stock."""
        address = reverse("admin:stock_stocklevel_changelist")

        self.client.post(
            address, {"action": "receive", "_selected_action": ["TEA", "CUP"]}
        )
        self.client.post(
            address, {"action": "find_nothing", "_selected_action": ["TEA"]}
        )

        assert stock_of("TEA") == 0
        assert event_store.load(Shelf, "CUP").quantity == 53


class OrderBookTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def import_rows(self, *rows: tuple[str, ...]) -> list[RefusedLine]:
        with TemporaryDirectory() as folder:
            path = Path(folder, "orders.csv")
            with path.open("w", newline="") as file:
                csv.writer(file).writerows((COLUMNS, *rows))
            self.report = import_lines(read_lines(path))
        return self.report.refused

    def test_follows_an_order_to_its_end(self) -> None:
        """A line is placed and then shipped or cancelled, as it was then."""
        self.import_rows(
            ("A-1", "2026-11-02", ADA, "2 TEA; 1 CUP", "39.80 EUR", "shipped"),
            ("A-2", "2026-11-03", ADA, "1 TEA", "9.90 EUR", "cancelled"),
            ("A-3", "2026-11-04", ADA, "1 TEA", "9.90 EUR", ""),
        )

        assert self.report.placed == 3
        assert list(Order.objects.values_list("reference", "status")) == [
            ("A-3", "placed"),
            ("A-2", "cancelled"),
            ("A-1", "shipped"),
        ]

    def test_reports_refused_lines(self) -> None:
        """With their number in the file and the reason; the others are imported."""
        refused = self.import_rows(
            ("A-1", "2026-11-02", ADA, "two TEA", "19.80 EUR", ""),
            ("A-2", "2026-11-02", ADA, "2 TEA", "19.80 EUR", ""),
            ("A-3", "2026-11-02", ADA),
            ("A-4", "2026-11-02", ADA, "9 SOAP", "9.90 EUR", ""),
        )

        assert self.report.placed == 1
        assert [(line.number, line.reference) for line in refused] == [
            (2, "A-1"),
            (4, "A-3"),
            (5, "A-4"),
        ]
        assert refused[0].reason.startswith("lines.0.quantity: ")
        assert refused[1].reason == "3 columns instead of 6"
        assert refused[2].reason == "lines.0.sku: product 'SOAP' does not exist"

    def test_may_be_repeated(self) -> None:
        """What was imported before is left alone."""
        row = ("A-1", "2026-11-02", ADA, "2 TEA", "19.80 EUR", "shipped")
        self.import_rows(row)
        self.import_rows(row)

        assert (self.report.placed, self.report.known) == (0, 1)
        assert Order.objects.count() == 1


class SeedTests(TestCase):
    def seed(self) -> str:
        out = StringIO()
        call_command("seed", stdout=out)
        return out.getvalue()

    @override_settings(DEBUG=True)
    @patch("storefront.management.commands.seed.read_lines", lambda: read_lines()[:20])
    def test_fills_an_empty_shop_once(self) -> None:
        """The second run adds nothing, and names only the waiting messages."""
        first = self.seed()

        assert "20 orders placed." in first
        assert "user admin, password admin" in first
        assert self.client.login(username="admin", password="admin")  # noqa: S106
        assert self.seed() == first.splitlines(keepends=True)[2]

    def test_opens_no_door_on_a_real_server(self) -> None:
        """A well-known password is for DEBUG alone."""
        open_shop()
        place()

        assert self.seed() == ""
        assert not get_user_model().objects.exists()

    def test_leaves_what_is_there(self) -> None:
        """A catalogue that was edited stays as it was edited."""
        load_catalogue()
        command_bus.dispatch(CountGoods("WHISK", 1))
        load_catalogue()

        assert stock_of("WHISK") == 1

    def test_asks_for_the_tables(self) -> None:
        """Without them it stops with advice, not with an error of the database."""
        MigrationRecorder(connection).record_unapplied("audit", "0001_initial")

        with self.assertRaisesMessage(CommandError, "'python manage.py migrate' first"):
            self.seed()
