"""The example is what a newcomer tries first: it works, everywhere, every time."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from tests.example.shop import PROJECT, Shop, environment
from tests.limits import LIMIT
from tests.outbox.support import SOAKS, on_postgresql

if TYPE_CHECKING:
    from pathlib import Path

USE_OF_THE_SHOP = """
from orders.messages import OrderedItem, PlaceOrder, new_reference
from payments.models import CreditAccount
from stock.messages import CountGoods
from stock.models import StockLevel
from django_cqrs import command_bus

for account in CreditAccount.objects.filter(customer__email__regex="samuel|greta"):
    account.credit_limit = 10_000
    account.save()
    for sku in ("TEA-SENCHA", "TEA-MINT"):
        command_bus.dispatch(PlaceOrder(
            reference=new_reference(),
            customer=account.customer.email,
            lines=(OrderedItem(sku, 3),),
        ))
    account.credit_limit = account.credit_limit - account.available
    account.save()
for level in StockLevel.objects.filter(quantity__gt=0):
    command_bus.dispatch(CountGoods(level.sku, 0))
"""
GOOD_LINES, BAD_LINES = 512, 14


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


class TestProject:
    def test_its_own_tests_pass(self, shop):
        """
        The tests that stand beside the example's code pass with its own settings, and
        a machine finds no mistake in its saga: 500 examples by `make soak`. [K03.2]
        """
        output = shop.manage("test", str(PROJECT))

        (count,) = re.findall(r"^Ran (\d+) tests", output, re.MULTILINE)
        assert int(count) >= 90
        said = f"{500 if SOAKS else 20} examples of the saga's machine"
        assert output.count(said) == 1
        print(said)

    @pytest.mark.database
    def test_two_who_work_on_one_order_do_not_end_in_a_deadlock(self, shop):
        """
        Who pays, ships or cancels, and the timer: each begins with another row.
        """
        on_postgresql()
        shop.env["DATABASE_URL"] = f"{os.environ['DATABASE_URL']}_shop"

        output = shop.manage(
            "test", "fulfilment.tests.RivalTests", "--pythonpath", str(PROJECT)
        )

        assert re.search(r"^Ran 3 tests in .*\n\nOK$", output, re.MULTILINE)

    def test_migrations_are_complete(self, shop):
        """
        The committed migrations make the models, on every Django.
        """
        assert "No changes" in shop.manage("makemigrations", "--check", "--dry-run")

    def test_its_messages_are_as_locked(self, shop):
        """
        A change that waiting messages would not survive fails here.
        """
        assert "as locked" in shop.manage("cqrs_schema", "--check")

    def test_checks_are_silent(self, shop):
        """
        The example is free of mistakes that a check knows, warnings included.
        """
        output = shop.manage("check", "--fail-level", "INFO")

        assert "no issues" in output


class TestDemo:
    def test_sections_stand_in_order(self, demos):
        """
        Whoever has never heard of CQRS is told what will come, sees it, and learns
        where to go on.
        """
        for output in demos:
            headings = re.findall(r"^(\d+)\. \S.*$", output, re.MULTILINE)
            assert headings == [str(number) for number in range(1, 13)]

    def test_shows_the_route_table(self, demos):
        """
        The second section is the output of `cqrs_routes`.
        """
        assert "order.place" in demos[0]
        assert "Order.place" in demos[0]

    def test_imports_what_can_be_imported(self, demos):
        """
        At least 500 lines are placed; each bad one is listed with its line number.
        """
        assert GOOD_LINES >= 500
        assert f"{GOOD_LINES} orders placed, {BAD_LINES} lines refused, in " in demos[0]
        assert len(re.findall(r"^\d+ +KL-\d+ ", demos[0], re.MULTILINE)) == BAD_LINES

    def test_line_numbers_are_those_of_the_file(self, demos):
        """
        An editor that opens the file at a reported line shows the reported order.
        """
        lines = (PROJECT / "data" / "orders.csv").read_text().splitlines()

        for number, reference in re.findall(
            r"^(\d+) +(KL-\d+) ", demos[0], re.MULTILINE
        ):
            assert lines[int(number) - 1].startswith(f"{reference},")

    def test_explains_a_second_run(self, demos):
        """
        A second run imports nothing twice, says so, and refuses the same lines.
        """
        said = " ".join(demos[1].split())

        assert f"0 orders placed, {BAD_LINES} lines refused" in said
        assert f"The other {GOOD_LINES} orders were in the shop" in said

    def test_a_failed_command_leaves_nothing(self, demos):
        """
        What the command had written before it failed is seen, and is gone after.
        """
        for output in demos:
            counts = re.findall(
                r"^(?:orders|order lines|goods in stock|audit entries)"
                r" +(\d+)  (\d .*\S) +(\d+)$",
                output,
                re.MULTILINE,
            )
            assert len(counts) == 4
            assert all(before == after for before, _, after in counts)
            assert "CreditLimitExceeded" in output
            assert "The command left nothing behind." in output

    def test_a_paid_order_is_shipped_an_unpaid_one_cancelled(self, demos):
        """
        The saga ships what is paid; the timer of the other falls due, and cancels it. [M14.4]
        """
        for output in demos:
            rows = re.findall(r"^WEB-\w+ +(\w+) +(\w+) +(\S.*)$", output, re.MULTILINE)
            assert rows == [
                ("shipped", "captured", "done"),
                ("placed", "authorised", "waiting for payment"),
                ("shipped", "captured", "done"),
                ("cancelled", "released", "not paid in time"),
            ]
            assert "One order is shipped, the other is cancelled." in output

    def test_the_past_of_the_stock_is_shown(self, demos):
        """
        What was taken and returned is there in order, with the stock after each; the
        stock before it all is what it was.
        """
        for output in demos:
            rows = re.findall(
                r"^ +(\d+)  stock\.(\w+) +WEB-\w+ +(\d+)$", output, re.MULTILINE
            )
            assert [event for _, event, _ in rows] == ["taken", "taken", "returned"]
            first, second, last = (int(stock) for _, _, stock in rows)
            assert (second, last) == (first - 1, first)
            (before,) = re.findall(r"there were (\d+) on the shelf", output)
            assert int(before) == first + 1

    def test_a_rebuild_makes_the_view_again(self, demos):
        """
        After somebody has set every row to nothing, each is what it was.
        """
        for output in demos:
            rows = dict(
                re.findall(
                    r"^(before|after the mistake|after the rebuild) +(\d+)$",
                    output,
                    re.MULTILINE,
                )
            )
            assert rows["after the mistake"] == "0"
            assert rows["before"] == rows["after the rebuild"] != "0"

    def test_sales_are_as_many_as_orders(self, demo_shop, demos):
        """
        The worker has brought the view up to date: it counts what was not cancelled.
        """
        assert len(demos) == 2
        database = sqlite3.connect(demo_shop.folder / "shop.sqlite3")
        try:
            counted = database.execute(
                "SELECT placed_on, count(*) FROM orders_order "
                "WHERE status != 'cancelled' GROUP BY placed_on ORDER BY placed_on"
            ).fetchall()
            shown = database.execute(
                "SELECT day, orders FROM sales_salesday WHERE orders > 0 ORDER BY day"
            ).fetchall()
            assert shown == counted
        finally:
            database.close()

    def test_no_control_characters_in_a_pipe(self, demos):
        """
        Where no terminal reads, there is neither colour nor a progress bar.
        """
        for output in demos:
            assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f]", output) == []

    def test_runs_after_any_use_of_the_shop(self, shop, demo_shop):
        """
        Where its customers have no credit left, its goods are sold out, messages wait
        or are dead, it does what it did at first, and leaves those as they are.
        """
        shutil.copytree(demo_shop.folder, shop.folder, dirs_exist_ok=True)
        shop.manage("seed")
        shop.manage("shell", "-c", USE_OF_THE_SHOP)

        output = shop.manage("demo")

        assert "CreditLimitExceeded" in output
        assert "Every message is handled." in output
        assert "One order is shipped, the other is cancelled." in output
        assert "The rows are as they were." in output
        assert "the mailbox of •••••• is full" in shop.manage("cqrs_failed", "list")

    def test_the_admin_has_something_to_show_after_a_demo(self, shop, demo_shop):
        """
        `seed`, which `make serve` runs, leaves messages to handle and says by what.
        """
        shutil.copytree(demo_shop.folder, shop.folder, dirs_exist_ok=True)

        said = shop.manage("seed")

        assert "2 messages wait in 'mail'; python manage.py cqrs_worker mail" in said
        assert shop.manage("cqrs_stats", "mail").splitlines()[2].split()[1] == "2"
        shop.manage("seed")
        assert shop.manage("cqrs_stats", "mail").splitlines()[2].split()[1] == "2"

    def test_fits_a_narrow_terminal(self, shop, demo_shop):
        """
        The demo's own paragraphs and tables keep to the width of the terminal, down
        to 60 columns.
        """
        shutil.copytree(demo_shop.folder, shop.folder, dirs_exist_ok=True)
        shop.env["COLUMNS"] = "60"
        _, _, own = shop.manage("demo").partition("3. An order book")

        assert max(map(len, own.splitlines())) <= 60

    def test_draws_a_progress_bar_on_a_terminal(self, shop, demo_shop):
        """
        On a terminal the import is watched as it goes, whatever comes of its lines.
        """
        shutil.copytree(demo_shop.folder, shop.folder, dirs_exist_ok=True)

        output = on_terminal(shop, "demo")

        assert f"/{GOOD_LINES + BAD_LINES} [" in output
        assert "\x1b[" in output

    def test_asks_for_the_tables(self, shop):
        """
        Run too early, it names the command to run first, and shows no traceback.
        """
        done = subprocess.run(
            shop.command("demo"),
            env=shop.env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

        assert done.returncode == 1
        assert "run 'python manage.py migrate' first" in done.stderr
        assert "Traceback" not in done.stderr

    def test_g03_1_what_has_happened_was_in_the_code(self, demos, demo_shop):
        """
        Every message that the journal has seen in two demos has a sender in the graph,
        and so has every message that the shop knows. [G03.1]
        """
        graph = json.loads(
            demo_shop.manage("cqrs_graph", "--observed", "--format", "json")
        )

        seen = [edge for edge in graph["edges"] if edge["observed"]]
        assert [edge for edge in seen if not edge["ways"]] == []
        assert {edge["message"].rpartition(".")[2] for edge in seen} == {
            *("PlaceOrder", "CancelOrder", "PayOrder", "ShipOrder"),
            *("OrderPlaced", "OrderCancelled", "PaymentDue", "PaymentAuthorised"),
            *("PaymentCaptured", "PaymentReleased", "ShipmentPrepared"),
            *("ShipmentSent", "ShipmentCalledOff", "ReceiveGoods"),
        }
        sent = {(edge["kind"], edge["message"]) for edge in graph["edges"]}
        known = {(each["kind"], each["id"]) for each in graph["messages"]}
        assert known == sent
        assert [e["name"] for e in graph["handlers"] if not e["is_readable"]] == []

    @pytest.mark.usefixtures("demos")
    def test_data_is_consistent(self, demo_shop, demos):
        """
        Every order that was not refused has its payment, its parcel and its invoice,
        and no shelf holds less than nothing.
        """
        tables = ("orders_order", "payments_payment", "shipping_shipment")
        database = sqlite3.connect(demo_shop.folder / "shop.sqlite3")
        try:
            for table in (*tables, "office_invoice"):
                ((count,),) = database.execute(f"SELECT count(*) FROM {table}")
                # Each demo places three orders beside the book's.
                assert count == GOOD_LINES + 3 * len(demos)
            ((least,),) = database.execute("SELECT min(quantity) FROM stock_stocklevel")
            assert least >= 0
        finally:
            database.close()

    def test_order_book_has_many_kinds_of_bad_lines(self):
        """
        The file is as long as it says, and its lines have unique references.
        """
        with (PROJECT / "data" / "orders.csv").open(newline="") as file:
            _, *rows = csv.reader(file)

        assert len(rows) == GOOD_LINES + BAD_LINES
        assert len({row[0] for row in rows}) == len(rows)


class TestReadme:
    def test_its_session_runs(self, shop, demo_shop):
        """
        What the README shows of the shell is what the shell shows.
        """
        shutil.copytree(demo_shop.folder, shop.folder, dirs_exist_ok=True)
        (session,) = re.findall(
            r"```pycon\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL
        )
        script = shop.folder / "session.py"
        script.write_text(
            "import doctest\n"
            "flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL\n"
            f"session = {session!r}\n"
            "test = doctest.DocTestParser().get_doctest(session, {}, 'README', '', 0)\n"
            "print(doctest.DocTestRunner(optionflags=flags).run(test))\n"
        )

        output = shop.manage("shell", "-c", f"exec(open({str(script)!r}).read())")

        assert re.search(r"failed=0, attempted=[1-9]", output), output

    def test_g03_1_the_front_page_shows_its_message_graph(self, shop):
        """
        The chart of the project's front page is drawn by the command, from the code.
        [G03.1]
        """
        readme = (PROJECT.parent / "README.md").read_text()
        (chart,) = re.findall(r"```mermaid\n(.*?)```", readme, re.DOTALL)

        assert chart == shop.manage(
            "cqrs_graph", "--format", "mermaid", "--bus", "command", "--bus", "event"
        )


class TestSettings:
    @pytest.fixture
    def copy(self, tmp_path):
        """The project as a fresh clone has it: no .env, no database."""
        ignored = shutil.ignore_patterns(".env", "*.sqlite3*", "__pycache__")
        return shutil.copytree(PROJECT, tmp_path / "clone", ignore=ignored)

    def settings(self, copy, **variables):
        """Return how the settings of a copy come out, from another directory."""
        code = (
            "from django.conf import settings as s\n"
            "d = s.DATABASES['default']\n"
            "print(s.DEBUG, s.SECRET_KEY, s.ALLOWED_HOSTS, d['ENGINE'], d['NAME'])"
        )
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd="/",
            env=environment(
                DJANGO_SETTINGS_MODULE="config.settings",
                PYTHONPATH=os.pathsep.join(
                    filter(None, [str(copy), os.environ.get("PYTHONPATH")])
                ),
                **variables,
            ),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def test_env_example_alone_is_enough(self, copy):
        """
        Copied to .env, the committed file gives working settings; they are those
        that hold without it, and the database is beside manage.py wherever one is.
        """
        without = self.settings(copy)
        shutil.copy(copy / ".env.example", copy / ".env")
        with_file = self.settings(copy)

        assert with_file.stdout == without.stdout
        assert with_file.stdout.rstrip().endswith(
            f"django.db.backends.sqlite3 {copy / 'db.sqlite3'}"
        )

    def test_env_example_is_complete(self):
        """
        Every variable that the settings read is in the file, with its explanation.
        """
        declared = (PROJECT / "config" / "settings.py").read_text()
        listed = (PROJECT / ".env.example").read_text()

        names = re.findall(r"^    ([A-Z_]+)=\(", declared, re.MULTILINE)
        assert names
        for name in names:
            assert re.search(rf"^# .+\n{name}=", listed, re.MULTILINE), name

    def test_one_line_switches_to_postgresql(self, copy):
        """
        The line for PostgreSQL stands in the file, ready to be uncommented.
        """
        text = (copy / ".env.example").read_text()
        (copy / ".env").write_text(text.replace("# DATABASE_URL=", "DATABASE_URL="))

        assert "django.db.backends.postgresql shop" in self.settings(copy).stdout

    def test_an_absolute_path_stays(self, copy):
        """
        Four slashes name a file anywhere.
        """
        done = self.settings(copy, DATABASE_URL="sqlite:////srv/shop.sqlite3")

        assert done.stdout.rstrip().endswith(" /srv/shop.sqlite3")

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "nonsense",
            "://user:secret@127.0.0.1/shop",
            "shop://user:secret@127.0.0.1/shop",
            "redis://:secret@127.0.0.1",
            "postgres://user:secret@127.0.0.1:port/shop",
        ],
    )
    def test_an_address_of_no_database_is_one_clear_error(self, copy, address):
        """
        It names the variable and shows an address, without the password of this one.
        """
        done = self.settings(copy, DATABASE_URL=address)

        assert done.returncode != 0
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1] == (
            "django.core.exceptions.ImproperlyConfigured: DATABASE_URL is not the "
            "address of a database. Write, for example, sqlite:///db.sqlite3 or "
            "postgres://user:password@127.0.0.1:5432/shop."
        )
        assert "secret" not in done.stderr

    def test_the_well_known_key_is_for_debug_alone(self, copy):
        """
        A real server with the committed key does not start, and says why.
        """
        done = self.settings(copy, DEBUG="False")

        assert done.returncode != 0
        assert "Set SECRET_KEY to a secret of your own" in done.stderr


def on_terminal(shop: Shop, *arguments: str) -> str:
    """Run a management command on a terminal of 30 rows and 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    with subprocess.Popen(
        shop.command(*arguments),
        env=shop.env | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                printed += os.read(ours, 4096)
            except OSError:  # Linux says so when the other side is closed.
                break
    os.close(ours)
    assert process.returncode == 0, printed
    return printed.decode()
