"""Pools between the project and PostgreSQL."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection

from django_cqrs import Registry, command_handler
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.worker import Bounds, Worker
from tests.tried.shop.models import Row

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGES = 200


@pytest.fixture
def pgbouncer():
    """Start PgBouncer in transaction mode with two connections; give its port."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.fail("PgBouncer is not installed: apt-get install pgbouncer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = connection.settings_dict
    # It refuses to run as root, so its settings are where another user may read them.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={server['HOST']} port={server['PORT'] or 5432}"
        f" user={server['USER']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 2\n"
    )
    process = subprocess.Popen([program, "-q", settings], user="nobody")
    try:
        while True:
            assert process.poll() is None, "PgBouncer ended."
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@contextmanager
def connected(**settings):
    """Have the tests' connection made anew with other settings, then as before."""
    before = connection.settings_dict.copy()
    connection.close()
    connection.settings_dict.update(settings)
    try:
        yield
    finally:
        connection.close()
        if "pool" in settings.get("OPTIONS", {}):
            connection.close_pool()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)


def handled():
    """Send messages in commands and let a worker handle them; return what it did."""

    @command_handler("store", name="store", channel="outbox")
    def store(number: int) -> None:
        Row.objects.create(number=number)

    registry = Registry()
    registry.add(store)
    for number in range(MESSAGES):
        registry.command_bus.dispatch(number, route="store")
    bounds = Bounds(until_empty=True)
    tally = Worker(registry, ["outbox"], using="default", bounds=bounds).run()
    assert sorted(Row.objects.values_list("number", flat=True)) == list(range(MESSAGES))
    assert OutboxMessage.objects.count() == 0
    return tally


def test_the_outbox_works_through_pgbouncer_in_transaction_mode(pgbouncer):
    """PgBouncer: messages are sent and handled once where each transaction may have
    another connection."""
    with connected(
        PORT=pgbouncer,
        DISABLE_SERVER_SIDE_CURSORS=True,
        OPTIONS={**connection.settings_dict["OPTIONS"], "prepare_threshold": None},
    ):
        assert handled().handled == MESSAGES


def test_the_outbox_works_with_a_pool_of_psycopg():
    """psycopg's pool: messages are sent and handled once with OPTIONS["pool"]."""
    options = {**connection.settings_dict["OPTIONS"], "pool": {"max_size": 4}}
    with connected(OPTIONS=options, CONN_MAX_AGE=0):
        assert handled().handled == MESSAGES
