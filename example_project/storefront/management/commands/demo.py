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
from django.db.models import Sum
from django.utils import timezone
from tabulate import tabulate
from tqdm import tqdm

from audit.models import AuditEntry
from common.errors import Refused
from django_cqrs import command_bus, query_bus
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from fulfilment.messages import GetFulfilment
from office.models import FullMailbox
from orders.messages import GetOrder, OrderedItem, PlaceOrder, new_reference
from orders.models import Order, OrderLine, Product
from payments.api import payments
from payments.messages import GetPayment, PayOrder
from payments.models import CreditAccount, Payment
from shipping.models import Shipment
from storefront.data import load_catalogue, require_tables
from storefront.orderbook import import_lines, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.db.models import Model, QuerySet

TOO_MUCH = PlaceOrder(
    reference="DEMO-TOO-MUCH",
    customer="samuel.weiss@mail.example",
    lines=(OrderedItem("KETTLE-ELECTRIC", 2), OrderedItem("TEA-SENCHA", 1)),
)
SMALL_ORDER = PlaceOrder(
    customer="samuel.weiss@mail.example", lines=(OrderedItem("TEA-SENCHA", 1),)
)
GRETAS_ORDER = PlaceOrder(
    customer="greta.vogel@mail.example", lines=(OrderedItem("TEA-MINT", 1),)
)
GOODS = "goods in stock"
# So many of each article the demo leaves on the shelves before it begins.
ENOUGH = 20
# So many seconds it waits for a worker that is handling its messages.
PATIENCE = 60
WATCHED: dict[str, type[Model]] = {
    "orders": Order,
    "order lines": OrderLine,
    GOODS: Product,
    "payments": Payment,
    "parcels": Shipment,
    "audit entries": AuditEntry,
}


class Command(BaseCommand):
    """Nine short sections, each with a sentence that explains it."""

    help = "Imports the order book and shows commands, queries and events at work."

    def handle(self, **options: Any) -> None:
        self.width = shutil.get_terminal_size().columns
        require_tables()
        load_catalogue()
        prepare_for_demo()
        self.introduce()
        self.show_routes()
        self.import_order_book()
        self.ask_for_revenue()
        self.fail_half_way()
        self.work_in_the_background()
        self.wait_for_the_money()
        self.say_what_next()

    def introduce(self) -> None:
        self.section("1. What you are about to see")
        self.say(
            "This is a small tea shop. Its code is sorted by three words: a COMMAND "
            "changes something ('place this order'), a QUERY only asks ('who ordered "
            "most?'), and an EVENT tells what has happened ('an order was placed'), "
            "so that others can react to it. Keeping the three apart is called CQRS. "
            "Now an order book is imported through commands, one question is asked, "
            "one command is made to fail, a worker does what nobody waits for, and a "
            "process waits for its money."
        )

    def show_routes(self) -> None:
        self.section("2. Who handles what")
        self.say(
            "Messages are plain objects; which function handles which was read from "
            "the type annotations in each app's handlers.py and models.py. This is "
            "'manage.py cqrs_routes':"
        )
        call_command("cqrs_routes", stdout=self.stdout)
        self.stdout.write()

    def import_order_book(self) -> None:
        lines = read_lines()
        self.section("3. An order book becomes commands")
        self.say(
            f"Each of the {len(lines)} lines of data/orders.csv becomes a PlaceOrder "
            'command: command_bus.dispatch(line, route="order.place"). The order, its '
            "payment and its parcel are written by three apps in one transaction: all "
            "of them or none."
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
                "run. Their commands were refused because no reference is taken twice, "
                "so an import may be repeated without harm."
            )

        self.section("4. The lines that were refused")
        self.say(
            "A refused line disturbs no other and leaves nothing behind. Some could "
            "not be read as a PlaceOrder, the others broke a rule of the shop. Before "
            "the colon stands the part at fault: lines.0.quantity is the quantity in "
            "the order's first line."
        )
        self.table(("line", "reference", "reason"), report.refused)

    def ask_for_revenue(self) -> None:
        self.section("5. A question: who ordered most?")
        self.say(
            "A query changes nothing and answers with plain rows. "
            'This one is query_bus.ask(8, route="customer.revenue"):'
        )
        rows = query_bus.ask(8, route="customer.revenue")
        self.table(
            ("customer", "orders", "revenue"),
            [(row.customer, row.orders, row.revenue) for row in rows],
            align=("left", "right", "right"),
        )

    def fail_half_way(self) -> None:
        self.section("6. A command that fails half-way")
        self.say(
            "Samuel Weiss orders two electric kettles. His order is written and the "
            "goods are taken; then the payments app hears of it, finds his credit too "
            "small and raises an error. All of that is one transaction, so all of it "
            "is undone. The counts before and after prove it:"
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
                (name, before[name], writes.said_of(name), after[name])
                for name in before
            ],
            align=("left", "right", "left", "right"),
        )
        if Order.objects.filter(reference=reference).exists():
            raise CommandError("Something of the refused order stayed.")
        self.say("Nothing of it stayed.", self.style.SUCCESS)

    def work_in_the_background(self) -> None:
        self.section("7. Work that nobody waits for")
        self.say(
            "Every order has an invoice and a letter, but no customer waits for them: "
            'their handlers say channel="mail", so the event was stored in the '
            "transaction of its order, once for each of the two. "
            f"{waiting('mail').count()} messages wait for 'manage.py cqrs_worker "
            "mail', which handles them now:"
        )
        self.run_worker()
        self.say("Samuel's mailbox is full when he orders once more:")
        FullMailbox.objects.get_or_create(address=SMALL_ORDER.customer)
        # What belongs together has one correlation id: others' messages are left alone.
        order = uuid4()
        command_bus.dispatch(
            replace(SMALL_ORDER, reference=new_reference()),
            headers={"correlation_id": order},
        )
        letters = DeadLetter.objects.filter(correlation_id=order)
        self.run_worker()
        self.say(
            "One letter was refused. Its handler says Retry(attempts=2, delay=1): a "
            "second later it is tried again, and then it is a dead letter. The invoice "
            "of the same order was written all the same. 'manage.py cqrs_failed list' "
            "shows it:"
        )
        sleep(1.1)
        self.run_worker_until(letters.exists)
        self.table(
            ("handler", "tries", "error"),
            [(letter.endpoint, letter.attempts, letter.error) for letter in letters],
        )
        self.say(
            "Somebody empties the mailbox; 'manage.py cqrs_failed replay' puts the "
            "letter back, for its own handler alone:"
        )
        FullMailbox.objects.filter(address=SMALL_ORDER.customer).delete()
        numbers = [str(letter.pk) for letter in letters]
        call_command("cqrs_failed", "replay", *numbers, stdout=self.stdout)
        mail = waiting("mail").filter(correlation_id=order)
        self.run_worker_until(lambda: not mail.exists())
        if letters.all().exists():
            raise CommandError("A message was left over.")
        self.say("Nothing is left over.", self.style.SUCCESS)

    def wait_for_the_money(self) -> None:
        self.section("8. A process that waits for its money")
        hours = settings.PAYMENT_TIME / timedelta(hours=1)
        self.say(
            "An order is shipped when it is paid. What waits for the money is called a "
            "SAGA: a row that remembers how far its order has come, and hears of the "
            "events that move it on. It also has a timer, a message in the outbox that "
            f"no worker handles before {hours:g} hours have gone by. Greta Vogel "
            "orders twice, and pays once: payments.pay(PayOrder(order_id))."
        )
        paid, unpaid = (
            command_bus.dispatch(replace(GRETAS_ORDER, reference=new_reference()))
            for _ in range(2)
        )
        payments.pay(PayOrder(paid))
        self.show_orders(paid, unpaid)
        self.say(
            "The saga of the paid order has sent ShipOrder and is over, so its timer "
            "was taken back. The other timer still waits. To spare you the time, the "
            "demo has it fall due now, as if those hours had gone by, and 'manage.py "
            "cqrs_worker timers' handles it as it would have then:"
        )
        timers = waiting("timers")
        timers.filter(subject=f"fulfilment.Fulfilment:{unpaid}").update(
            available_at=timezone.now()
        )
        self.run_worker("timers")
        self.show_orders(paid, unpaid)
        self.say(
            "The saga found no payment and sent CancelOrder: the goods are back in "
            "stock, and Greta owes nothing. The letters of both orders go out:"
        )
        self.run_worker("mail")
        states = Order.objects.in_bulk([paid, unpaid])  # whoever has handled it
        if (states[paid].status, states[unpaid].status) != ("shipped", "cancelled"):
            raise CommandError("A saga did not do its work.")
        self.say("One order is shipped, one is cancelled.", self.style.SUCCESS)

    def show_orders(self, *order_ids: int) -> None:
        """Print what each app knows of these orders."""
        rows = []
        for order_id in order_ids:
            order = query_bus.ask(GetOrder(order_id))
            payment = payments.find(GetPayment(order_id))
            process = query_bus.ask(GetFulfilment(order_id))
            rows.append((order.reference, order.status, payment.status, process.state))
        self.table(("order", "is", "payment", "saga"), rows)

    def run_worker(self, channel: str = "mail") -> None:
        """Handle what is ready, as the worker does that runs beside a site."""
        # What it logs of each failure is told here in other words.
        logging.getLogger("django_cqrs.worker").disabled = True
        call_command("cqrs_worker", channel, "--until-empty", stdout=self.stdout)
        self.stdout.write()

    def run_worker_until(self, is_done: Callable[[], bool]) -> None:
        """Handle what is ready, or let a worker beside this do it, until it is done."""
        self.run_worker()
        for _ in range(PATIENCE):
            if is_done():
                return
            sleep(1)
            self.run_worker()
        raise CommandError("A message was not handled; see 'manage.py cqrs_stats'.")

    def say_what_next(self) -> None:
        self.section("9. What to do next")
        self.say("The same shop in a browser:")
        self.say("    make serve")
        self.say(
            "The code, best read in this order: messages.py, models.py and handlers.py "
            "in example_project/orders, then those in payments, shipping, fulfilment, "
            "audit and office. The documentation: docs/ (make docs). And run this "
            "again: it does no harm."
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
        """Print a table; its last column gives way where the terminal is narrow."""
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
    Leave the two customers the credit, and the shelves the goods, that are needed.

    Whatever was ordered before in the shop, or by the demo: Samuel's credit is enough
    for a small order and not for a large one, Greta's for both of hers.
    """
    skus = {
        item.sku
        for order in (TOO_MUCH, SMALL_ORDER, GRETAS_ORDER)
        for item in order.lines
    }
    products = Product.objects.filter(sku__in=skus)
    products.filter(stock__lt=ENOUGH).update(stock=ENOUGH)
    prices = dict(products.values_list("sku", "unit_price"))
    for order, times in ((SMALL_ORDER, 1), (GRETAS_ORDER, 2)):
        account = CreditAccount.objects.get(customer__email=order.customer)
        needed = times * sum(prices[item.sku] * item.quantity for item in order.lines)
        owed = account.credit_limit - account.available
        account.credit_limit = owed + needed
        account.save(update_fields=["credit_limit"])


class WriteCounter:
    """Counts what is written while it is installed, undone or not."""

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
                self.counts[name, "written"] += 1
            elif sql.startswith(f"UPDATE {table} "):
                self.counts[name, "changed"] += 1
        return execute(sql, params, many, context)

    def said_of(self, name: str) -> str:
        found = (
            f"{self.counts[name, verb]} {verb}"
            for verb in ("written", "changed")
            if self.counts[name, verb]
        )
        return ", ".join(found) or "-"


def waiting(channel: str) -> QuerySet[OutboxMessage]:
    """Find what waits in a channel."""
    return OutboxMessage.objects.filter(channel=channel)


def snapshot() -> dict[str, int]:
    """Count what there is."""
    counts = {name: model._default_manager.count() for name, model in WATCHED.items()}
    # Products stay as many as they are; what an order changes is their stock.
    counts[GOODS] = Product.objects.aggregate(goods=Sum("stock"))["goods"]
    return counts
