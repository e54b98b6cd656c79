"""The rules of the stock, and of its view."""

from __future__ import annotations

from datetime import timedelta

from django.test import SimpleTestCase, TestCase

from common.testing import open_shop, stock_of
from django_cqrs import command_bus, query_bus
from django_cqrs.events import event_store
from django_cqrs.testing import scenario
from django_cqrs.testing.flow import Flow
from orders.messages import CancelOrder, OrderedItem, PlaceOrder
from orders.models import Product
from stock.errors import OutOfStock
from stock.handlers import StockLevels
from stock.messages import (
    CountGoods,
    GoodsCounted,
    GoodsReceived,
    GoodsReturned,
    GoodsTaken,
    ReceiveGoods,
    StockRow,
)
from stock.models import Shelf, StockLevel

FIVE = GoodsReceived("TEA", 5)


def place(*lines: OrderedItem, reference: str) -> int:
    return command_bus.dispatch(
        PlaceOrder(customer="ada@mail.example", lines=lines, reference=reference)
    )


class ShelfTests(SimpleTestCase):
    """What has happened, what is asked, and what comes of it: no database is needed."""

    def test_begins_with_the_first_goods(self) -> None:
        """There is no other way to make a shelf."""
        scenario(Shelf).when(ReceiveGoods("TEA", 5)).then(FIVE)

    def test_receives_more(self) -> None:
        """The same command adds to a shelf that is there."""
        scenario(Shelf).given(FIVE).when(ReceiveGoods("TEA", 2)).then(
            GoodsReceived("TEA", 2)
        ).state(lambda shelf: shelf.quantity == 7)

    def test_is_corrected_by_counting(self) -> None:
        """A count that finds what was expected is no event."""
        begun = scenario(Shelf).given(FIVE, GoodsTaken("TEA", 2, "A-1"))

        begun.when(CountGoods("TEA", 3)).nothing()
        begun.when(CountGoods("TEA", 4)).then(GoodsCounted("TEA", 4))

    def test_gives_away_what_it_has(self) -> None:
        """A method of the class is a plain method, and records what has happened."""
        shelf = Shelf("TEA", 5)

        shelf.take(3, "A-1")

        assert shelf.quantity == 2
        with self.assertRaisesMessage(OutOfStock, "only 2 of TEA left"):
            shelf.take(3, "A-2")

    def test_quantities_make_sense(self) -> None:
        """Neither a delivery of nothing nor a count below it can be made."""
        with self.assertRaisesMessage(ValueError, "at least 1, not 0"):
            ReceiveGoods("TEA", 0)
        with self.assertRaisesMessage(ValueError, "nobody counts -1"):
            CountGoods("TEA", -1)


class StockTests(TestCase):
    def setUp(self) -> None:
        open_shop()

    def test_remembers_what_has_happened(self) -> None:
        """A cancelled order has taken and returned its goods."""
        command_bus.dispatch(CancelOrder(place(OrderedItem("TEA", 2), reference="A-1")))

        assert [each.event for each in event_store.read("stock.shelf-TEA")] == [
            GoodsReceived("TEA", 50),
            GoodsTaken("TEA", 2, "A-1"),
            GoodsReturned("TEA", 2, "A-1"),
        ]
        assert event_store.load(Shelf, "TEA", version=2).quantity == 48

    def test_knows_its_past(self) -> None:
        """A time is as good as a version."""
        place(OrderedItem("TEA", 2), reference="A-1")
        received, taken = event_store.read("stock.shelf-TEA")

        assert event_store.load(Shelf, "TEA", at=taken.recorded_at).quantity == 48
        with self.assertRaisesMessage(Exception, "stock.shelf-TEA"):
            moment = received.recorded_at - timedelta(seconds=1)
            event_store.load(Shelf, "TEA", at=moment)

    def test_one_shelf_that_lacks_goods_refuses_the_order(self) -> None:
        """The error names the line of the order; no shelf has lost anything."""
        with self.assertRaises(OutOfStock) as caught:
            place(OrderedItem("TEA", 1), OrderedItem("CUP", 4), reference="A-1")

        assert caught.exception.field == "lines.1.quantity"
        assert (stock_of("TEA"), stock_of("CUP")) == (50, 3)
        assert event_store.version("stock.shelf-TEA") == 1

    def test_goods_that_never_came(self) -> None:
        """A product without a shelf is sold out."""
        Product.objects.create(sku="WHISK", name="Whisk", unit_price=5)

        with self.assertRaisesMessage(OutOfStock, "only 0 of WHISK left"):
            place(OrderedItem("WHISK", 1), reference="A-1")

    def test_the_view_can_be_made_again(self) -> None:
        """Whatever was done to its rows, the events have the truth."""
        with Flow() as flow:
            place(OrderedItem("TEA", 2), OrderedItem("CUP", 1), reference="A-1")
            flow.assert_replays(StockLevels)
            StockLevel.objects.update(quantity=0)
            flow.rebuild(StockLevels)

        assert query_bus.ask(route="stock.levels") == [
            StockRow("CUP", 2),
            StockRow("TEA", 48),
        ]
