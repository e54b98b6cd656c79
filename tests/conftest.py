from __future__ import annotations

import gc
import inspect
import os
import shutil
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from asgiref.sync import async_to_sync

from tests.browsers import BROWSERS, chrome  # noqa: F401 - a fixture
from tests.example.shops import demo_shop, demos, once  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# A slow machine is no failure, and a busy one draws slowly.
hypothesis.settings.register_profile(
    "django_cqrs",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("django_cqrs")


def missing_browser() -> str | None:
    """Return why the browser tests cannot run here, or None where they can."""
    if not any(map(shutil.which, BROWSERS)):
        return "Chromium is not installed."
    if not shutil.which("chromedriver"):
        return "chromedriver is not installed."
    return None


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip the browser tests where no browser is, unless it is required."""
    reason = missing_browser()
    if reason is None or os.environ.get("CQRS_REQUIRE_BROWSER") == "1":
        return
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """
    Leave what the suite has imported and collected to itself.

    Each full collection of garbage would look through millions of objects that live
    as long as the process.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a browser test that is required and cannot run."""
    if item.get_closest_marker("browser") and (reason := missing_browser()):
        pytest.fail(f"{reason} CQRS_REQUIRE_BROWSER=1 asks for it.", pytrace=False)


MADE_BY_MIGRATE = {"auth_permission", "django_content_type"}


@pytest.fixture(autouse=True, scope="session")
def _tables_emptied_quickly() -> Iterator[None]:
    """
    Have the tables emptied after a test that commits in a fraction of the time.

    What `migrate` fills stays, for no test changes it: Django would empty it with the
    rest and make it anew, which takes longer than most tests. One statement asks which
    tables have rows, for most have none. PostgreSQL's tables are emptied by DELETE, as
    other databases' are: TRUNCATE makes new files of every table and index and waits
    for the disk. Foreign keys are checked at the end of the transaction, so that the
    order does not matter.
    """
    from django.db import connection

    operations: Any = type(connection.ops)
    original = operations.sql_flush

    def filled(self: Any, tables: Sequence[str]) -> list[str]:
        """Return the tables that have rows."""
        asked = " UNION ALL ".join(
            f"SELECT {number} FROM (SELECT 1 AS one) AS once "
            f"WHERE EXISTS (SELECT 1 FROM {self.quote_name(table)})"
            for number, table in enumerate(tables)
        )
        with self.connection.cursor() as cursor:
            cursor.execute(asked)
            return [tables[number] for (number,) in cursor.fetchall()]

    def sql_flush(
        self: Any, style: Any, tables: Sequence[str], **options: Any
    ) -> list[str]:
        tables = [table for table in tables if table not in MADE_BY_MIGRATE]
        if options.get("reset_sequences"):
            return original(self, style, tables, **options)
        tables = filled(self, tables) if tables else []
        if connection.vendor != "postgresql":
            return original(self, style, tables, **options) if tables else []
        return [f"DELETE FROM {self.quote_name(table)}" for table in tables]

    flush = "django.core.management.commands.flush"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "sql_flush", sql_flush)
        patch.setattr(f"{flush}.emit_post_migrate_signal", lambda *args, **kwargs: None)
        yield


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that is seen whether or not the test fails: sizes and figures."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", flush=True)

    return say


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """
    Run ``async def`` tests as Django's TestCase does: on the thread that owns the
    transaction. Under pytest-asyncio the ORM would use another connection, and rows
    would leak into later tests.
    """
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    async_to_sync(test)(**arguments)
    return True
