"""Show in the terminal what CQRS is, on the shop's own data."""

from __future__ import annotations

import logging
import shutil
import textwrap
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction
from django.utils import timezone
from tabulate import tabulate
from tqdm import tqdm

from audit.models import AuditEntry
from common.errors import Refused
from django_cqrs import command_bus, query_bus
from django_cqrs.events import event_store, projections
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from fulfilment.messages import GetFulfilment
from office.models import FullMailbox
from orders.messages import GetOrder, OrderedItem, PlaceOrder, new_reference
from orders.models import Order, OrderLine, Product
from payments.api import payments
from payments.messages import GetPayment, PayOrder
from payments.models import CreditAccount, Payment
from shipping.models import Shipment
from stock.messages import ReceiveGoods
from stock.models import Shelf, StockLevel
from storefront.data import load_catalogue, require_tables
from storefront.orderbook import import_lines, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.db.models import Model, QuerySet

MINT = "TEA-MINT"
TOO_MUCH = PlaceOrder(
    reference="DEMO-TOO-MUCH",
    customer="samuel.weiss@mail.example",
    lines=(OrderedItem("KETTLE-ELECTRIC", 2), OrderedItem("TEA-SENCHA", 1)),
)
SMALL_ORDER = PlaceOrder(
    customer="samuel.weiss@mail.example", lines=(OrderedItem("TEA-SENCHA", 1),)
)
GRETAS_ORDER = PlaceOrder(
    customer="greta.vogel@mail.example", lines=(OrderedItem(MINT, 1),)
)
GOODS = "goods in stock"
# The demo puts at least this many of each product that it orders in stock.
ENOUGH = 20
# The demo waits at most this many seconds for a worker that handles its messages.
PATIENCE = 60
WATCHED: dict[str, type[Model]] = {
    "orders": Order,
    "order lines": OrderLine,
    GOODS: StockLevel,
    "payments": Payment,
    "parcels": Shipment,
    "audit entries": AuditEntry,
}


class Command(BaseCommand):
    """Prints eleven short sections, each with an explanation."""

    help = "Imports the order book and shows commands, queries and events at work."

    def handle(self, **options: Any) -> None:
        self.width = shutil.get_terminal_size().columns
        require_tables()
        load_catalogue()
        self.introduce()
        self.show_routes()
        self.import_order_book()
        self.ask_for_revenue()
        # After the import: the orders of the book need the credit that was agreed.
        prepare_for_demo()
        self.fail_half_way()
        self.work_in_the_background()
        self.show_schedule()
        orders = self.wait_for_the_money()
        self.look_into_the_past(*orders)
        self.rebuild_the_view()
        self.show_sales()
        self.say_what_next()

    def introduce(self) -> None:
        self.section("1. What you are about to see")
        self.say(
            "This is a small tea shop, built from three kinds of message. A COMMAND "
            "changes something ('place this order'). A QUERY only asks ('who ordered "
            "most?'). An EVENT says what has happened ('an order was placed'), so that "
            "other code can react to it. Keeping the three apart is called CQRS. You "
            "will now see an order book imported through commands, a query answered, "
            "and a command that fails. Then a worker handles messages in the "
            "background, and a process waits for its money. At the end you look into "
            "the past of the stock, which is stored as what has happened."
        )

    def show_routes(self) -> None:
        self.section("2. Who handles what")
        self.say(
            "Messages are plain objects. The type annotations in each app's "
            "handlers.py and models.py say which function handles which message. This "
            "is the output of 'manage.py cqrs_routes':"
        )
        call_command("cqrs_routes", stdout=self.stdout)
        self.stdout.write()

    def import_order_book(self) -> None:
        lines = read_lines()
        self.section("3. An order book becomes commands")
        self.say(
            f"Each of the {len(lines)} lines of data/orders.csv becomes a PlaceOrder "
            'command: command_bus.dispatch(line, route="order.place"). Four apps '
            "write the order, its goods, its payment and its parcel in one "
            "transaction: all of them or none."
        )
        started = perf_counter()
        # disable=None: a bar for a terminal, nothing for a file or a pipe.
        report = import_lines(tqdm(lines, unit=" lines", disable=None))
        seconds = perf_counter() - started
        self.say(
            f"{report.placed} orders placed, {len(report.refused)} lines refused, "
            f"in {seconds:.1f} seconds.",
            self.style.SUCCESS,
        )
        if report.known:
            self.say(
                f"The other {report.known} orders were in the shop from an earlier "
                "run. Their commands were refused, because each reference is accepted "
                "only once. So you can safely repeat an import."
            )

        self.section("4. The lines that were refused")
        self.say(
            "A refused line does not affect the others, and it leaves nothing behind. "
            "Some lines could not be read as a PlaceOrder; the others broke a rule of "
            "the shop. The text before the colon is the path of the wrong field: "
            "lines.0.quantity is the quantity in the first line of the order."
        )
        self.table(("line", "reference", "reason"), report.refused)

    def ask_for_revenue(self) -> None:
        self.section("5. A query: who ordered most?")
        self.say(
            "A query changes nothing and returns plain rows. "
            'This one is query_bus.ask(8, route="customer.revenue"):'
        )
        rows = query_bus.ask(8, route="customer.revenue")
        self.table(
            ("customer", "orders", "revenue"),
            [(row.customer, row.orders, row.revenue) for row in rows],
            align=("left", "right", "right"),
        )

    def fail_half_way(self) -> None:
        self.section("6. A command that fails halfway")
        self.say(
            "Samuel Weiss orders two electric kettles. His order is written, and the "
            "goods leave the stock. Then the payments app handles the event, finds "
            "that his credit is too low, and raises an error. All of this is one "
            "transaction, so all of it is undone. The counts before and after prove it:"
        )
        writes = WriteCounter()
        reference = new_reference()
        before = snapshot()
        try:
            with connection.execute_wrapper(writes):
                command_bus.dispatch(replace(TOO_MUCH, reference=reference))
        except Refused as refusal:
            self.say(f"{type(refusal).__name__}: {refusal}")
        after = snapshot()
        self.table(
            ("", "before", "while it ran", "after"),
            [
                (name, before[name], writes.describe(name), after[name])
                for name in before
            ],
            align=("left", "right", "left", "right"),
        )
        if Order.objects.filter(reference=reference).exists():
            raise CommandError("The refused order left something behind.")
        self.say("The command left nothing behind.", self.style.SUCCESS)

    def work_in_the_background(self) -> None:
        self.section("7. Work in the background")
        self.say(
            "Every order gets an invoice and a letter, but the customer does not wait "
            'for them. Their two handlers have channel="mail", so the event was stored '
            "once for each of them, in the transaction of the order. "
            f"{waiting('mail').count()} messages are waiting for 'manage.py "
            "cqrs_worker mail', which handles them now:"
        )
        self.run_worker()
        self.say("Samuel orders again, but his mailbox is full:")
        FullMailbox.objects.get_or_create(address=SMALL_ORDER.customer)
        # The correlation id tells these messages from everybody else's.
        order = uuid4()
        command_bus.dispatch(
            replace(SMALL_ORDER, reference=new_reference()),
            headers={"correlation_id": order},
        )
        letters = DeadLetter.objects.filter(correlation_id=order)
        self.run_worker()
        self.say(
            "One letter was refused. Its handler has Retry(attempts=2, delay=1), so "
            "the worker tries again one second later, and then the message becomes a "
            "dead letter. The invoice of the same order was written nevertheless. "
            "'manage.py cqrs_failed list' shows the dead letter:"
        )
        sleep(1.1)
        self.run_worker_until(letters.exists)
        self.table(
            ("handler", "tries", "error"),
            [(letter.endpoint, letter.attempts, letter.error) for letter in letters],
        )
        self.say(
            "Somebody empties the mailbox. 'manage.py cqrs_failed replay' puts the "
            "message back into the channel, for the failed handler only:"
        )
        FullMailbox.objects.filter(address=SMALL_ORDER.customer).delete()
        numbers = [str(letter.pk) for letter in letters]
        call_command("cqrs_failed", "replay", *numbers, stdout=self.stdout)
        mail = waiting("mail").filter(correlation_id=order)
        self.run_worker_until(lambda: not mail.exists())
        if letters.all().exists():
            raise CommandError("A message is still a dead letter.")
        self.say("Every message is handled.", self.style.SUCCESS)

    def show_schedule(self) -> None:
        self.say(
            "Nobody has to send the owner's daily report. Its handler has a schedule, "
            "so the worker sends the command itself: once each morning, however many "
            "workers run. 'manage.py cqrs_schedules next office.report -n 2' shows "
            "when:"
        )
        arguments = ("next", "office.report", "-n", "2")
        call_command("cqrs_schedules", *arguments, stdout=self.stdout)
        self.stdout.write()

    def wait_for_the_money(self) -> list[Order]:
        self.section("8. A process that waits for its money")
        hours = settings.PAYMENT_TIME / timedelta(hours=1)
        self.say(
            "An order is shipped when it is paid. A SAGA waits for the money: it is a "
            "row that stores how far its order has come, and its handlers react to the "
            "events that move the order forward. A saga can set a timer, which is a "
            "message in the outbox. Here, a worker does not handle it until "
            f"{hours:g} hours have passed. Greta Vogel orders twice, and pays once: "
            "payments.pay(PayOrder(order_id))."
        )
        paid, unpaid = (
            command_bus.dispatch(replace(GRETAS_ORDER, reference=new_reference()))
            for _ in range(2)
        )
        payments.pay(PayOrder(paid))
        self.show_orders(paid, unpaid)
        self.say(
            "The saga of the paid order has sent ShipOrder and is complete, so its "
            "timer was removed. The other timer is still waiting. To save you the "
            "time, the demo makes it due now, as if those hours had passed. 'manage.py "
            "cqrs_worker timers' handles it as it would have done then:"
        )
        timers = waiting("timers")
        timers.filter(subject=f"fulfilment.Fulfilment:{unpaid}").update(
            available_at=timezone.now()
        )
        self.run_worker("timers")
        self.show_orders(paid, unpaid)
        self.say(
            "The saga did not find a payment, so it sent CancelOrder. The goods are "
            "back in stock, and Greta owes nothing. The worker sends the letters of "
            "both orders:"
        )
        self.run_worker("mail")
        states = Order.objects.in_bulk([paid, unpaid])  # whoever has handled it
        if (states[paid].status, states[unpaid].status) != ("shipped", "cancelled"):
            raise CommandError("A saga did not ship or cancel its order.")
        self.say("One order is shipped, the other is cancelled.", self.style.SUCCESS)
        return [states[paid], states[unpaid]]

    def show_orders(self, *order_ids: int) -> None:
        """Print the state of these orders in each app."""
        rows = []
        for order_id in order_ids:
            order = query_bus.ask(GetOrder(order_id))
            payment = payments.find(GetPayment(order_id))
            process = query_bus.ask(GetFulfilment(order_id))
            rows.append((order.reference, order.status, payment.status, process.state))
        self.table(("order", "status", "payment", "saga"), rows)

    def look_into_the_past(self, *orders: Order) -> None:
        self.section("9. A stock that remembers")
        self.say(
            "An order is a row, and a change overwrites it. The stock is different: it "
            "is EVENT-SOURCED. What is stored is what has happened to each shelf, its "
            "STREAM of events, and the shelf is made of that whenever somebody orders. "
            "Greta's two orders have left these events in "
            f'event_store.read("stock.shelf-{MINT}"):'
        )
        references = {order.reference for order in orders}
        events = [
            each
            for each in event_store.read(f"stock.shelf-{MINT}")
            if getattr(each.event, "order", "") in references
        ]
        self.table(
            ("version", "event", "order", "stock then"),
            [
                (
                    each.version,
                    each.name,
                    each.event.order,
                    event_store.load(Shelf, MINT, version=each.version).quantity,
                )
                for each in events
            ],
            align=("right", "left", "left", "right"),
        )
        first = events[0]
        self.say(
            "The last figure of each line is not stored anywhere. Because nothing is "
            "overwritten, the shelf can be made as it was after any event, "
            f'event_store.load(Shelf, "{MINT}", version={first.version}), or at any '
            "time with at=, such as the second before Greta ordered:"
        )
        before = first.recorded_at - timedelta(seconds=1)
        shelf = event_store.load(Shelf, MINT, at=before)
        self.say(f"At {before:%H:%M:%S} UTC there were {shelf.quantity} on the shelf.")

    def rebuild_the_view(self) -> None:
        self.section("10. A view that can be made again")
        self.say(
            "Nobody can list or filter shelves that are events. So a PROJECTION keeps "
            "a plain model up to date, stock.StockLevel, in the transaction of each "
            "event. Now somebody sets all of its rows to 0 by mistake. No order is "
            "refused because of that, since shelves decide by their events. 'manage.py "
            "cqrs_projections rebuild stock' makes the rows again:"
        )
        found = [("before", goods_in_stock())]
        StockLevel.objects.update(quantity=0)
        found.append(("after the mistake", goods_in_stock()))
        call_command("cqrs_projections", "rebuild", "stock", stdout=self.stdout)
        self.stdout.write()
        found.append(("after the rebuild", goods_in_stock()))
        self.table(("", GOODS), found, align=("left", "right"))
        if not StockLevel.objects.get(sku=MINT).quantity:
            raise CommandError("The rebuild did not fill the view.")
        self.say("The rows are as they were.", self.style.SUCCESS)

    def show_sales(self) -> None:
        self.section("11. A view that a worker fills")
        projections.init("sales")  # as the worker does when it starts
        self.say(
            'Sales by day are another projection. It has channel="views", so a worker '
            "runs it, and customers do not wait for it. It is "
            f"{projections.status('sales').lag} events behind. 'manage.py cqrs_worker "
            "views' brings it up to date:"
        )
        self.run_worker("views")
        # In case another worker is at it.
        projections.wait_for("sales", timeout=PATIENCE)
        self.table(
            ("day", "orders", "revenue"),
            [
                (row.day, row.orders, row.revenue)
                for row in query_bus.ask(5, route="sales.by_day")
            ],
            align=("left", "right", "right"),
        )
        self.say(
            "If you write a projection next year, it starts with the first event as "
            "well, so it can answer questions about this year."
        )

    def run_worker(self, channel: str = "mail") -> None:
        """Handle the messages that are ready, as a worker of a real site does."""
        # The demo explains each failure itself, so the worker's log is not shown.
        logging.getLogger("django_cqrs.worker").disabled = True
        call_command("cqrs_worker", channel, "--until-empty", stdout=self.stdout)
        self.stdout.write()

    def run_worker_until(self, is_done: Callable[[], bool]) -> None:
        """Handle messages, or let another worker handle them, until `is_done()`."""
        self.run_worker()
        for _ in range(PATIENCE):
            if is_done():
                return
            sleep(1)
            self.run_worker()
        raise CommandError("A message was not handled. Run 'manage.py cqrs_stats'.")

    def say_what_next(self) -> None:
        self.section("12. What to do next")
        self.say("Open the same shop in a browser:")
        self.say("    make serve")
        self.say(
            "Read the code in this order: messages.py, models.py and handlers.py in "
            "example_project/orders, then those in stock, payments, shipping, "
            "fulfilment, audit, office and sales. The documentation is in docs/ (make "
            "docs). You can safely run this demo again."
        )

    def section(self, title: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(title))

    def say(self, text: str, style: Callable[[str], str] = str) -> None:
        """Print a paragraph."""
        self.stdout.write(style(textwrap.fill(text, min(self.width, 80))) + "\n\n")

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[object]],
        align: Sequence[str] | None = None,
    ) -> None:
        """Print a table; wrap its last column where the terminal is too narrow."""
        cells = [[str(cell) for cell in row] for row in rows]
        rows_of_text = ([f"{heading}  " for heading in headings], *cells)
        columns = zip(*rows_of_text, strict=True)
        *others, _ = (max(map(len, column)) + 2 for column in columns)
        text = tabulate(
            cells,
            headers=headings,
            colalign=align,
            disable_numparse=True,
            maxcolwidths=[*(None for _ in others), max(self.width - sum(others), 20)],
        )
        self.stdout.write(text + "\n\n")


@transaction.atomic
def prepare_for_demo() -> None:
    """
    Give the two customers the credit, and the shop the goods, that the demo needs.

    This does not depend on earlier orders: Samuel's credit is enough for a small order
    but not for a large one, and Greta's is enough for both of hers.
    """
    skus = {
        item.sku
        for order in (TOO_MUCH, SMALL_ORDER, GRETAS_ORDER)
        for item in order.lines
    }
    for sku in skus:
        missing = ENOUGH - event_store.load(Shelf, sku).quantity
        if missing > 0:
            command_bus.dispatch(ReceiveGoods(sku, missing))
    products = Product.objects.filter(sku__in=skus)
    prices = dict(products.values_list("sku", "unit_price"))
    for order, times in ((SMALL_ORDER, 1), (GRETAS_ORDER, 2)):
        account = CreditAccount.objects.get(customer__email=order.customer)
        needed = times * sum(prices[item.sku] * item.quantity for item in order.lines)
        owed = account.credit_limit - account.available
        account.credit_limit = owed + needed
        account.save(update_fields=["credit_limit"])


class WriteCounter:
    """Counts the rows written while it is installed, whether or not they stay."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        for name, model in WATCHED.items():
            table = connection.ops.quote_name(model._meta.db_table)
            if sql.startswith(f"INSERT INTO {table} "):
                # A projection inserts its row, or updates the one that is there.
                verb = "changed" if " UPDATE " in sql else "written"
                self.counts[name, verb] += 1
            elif sql.startswith(f"UPDATE {table} "):
                self.counts[name, "changed"] += 1
        return execute(sql, params, many, context)

    def describe(self, name: str) -> str:
        found = (
            f"{self.counts[name, verb]} {verb}"
            for verb in ("written", "changed")
            if self.counts[name, verb]
        )
        return ", ".join(found) or "-"


def waiting(channel: str) -> QuerySet[OutboxMessage]:
    """Return the messages that wait in a channel."""
    return OutboxMessage.objects.filter(channel=channel)


def snapshot() -> dict[str, int]:
    """Count the rows of each table, and the goods in stock."""
    counts = {name: model._default_manager.count() for name, model in WATCHED.items()}
    # An order changes what lies on a shelf, not the number of shelves.
    counts[GOODS] = goods_in_stock()
    return counts


def goods_in_stock() -> int:
    """Add up what the view of the stock shows."""
    return sum(row.quantity for row in query_bus.ask(route="stock.levels"))
