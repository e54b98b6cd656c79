"""Many requests at once through a real ASGI server, against a real database."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from django.db import connection

from tests.limits import LIMIT
from tests.testapp.models import Note

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

ROOT = Path(__file__).parents[2]


class Server:
    """uvicorn in a process of its own, on the test's database."""

    def __init__(self, process: subprocess.Popen, url: str) -> None:
        self.process = process
        self.url = url
        self.errors = ""

    def connections(self) -> Counter:
        """Return how many connections it has open, by their state."""
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT state FROM pg_stat_activity "
                    "WHERE application_name = 'cqrs_load' AND datname = %s",
                    [connection.settings_dict["NAME"]],
                )
                return Counter(state for (state,) in cursor.fetchall())
        if connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT connection_id()")
                (own,) = cursor.fetchone()
                cursor.execute(
                    "SELECT command FROM information_schema.processlist "
                    "WHERE db = %s AND id <> %s",
                    [connection.settings_dict["NAME"], own],
                )
                return Counter(command for (command,) in cursor.fetchall())
        folder = Path(f"/proc/{self.process.pid}/fd")
        if not folder.exists():
            return Counter()
        wanted = Path(connection.settings_dict["NAME"]).resolve()
        found: Counter[str] = Counter()
        for each in folder.iterdir():
            # The server may have closed it since the folder was read.
            with suppress(FileNotFoundError):
                found["open"] += each.readlink() == wanted
        return +found

    def connections_after_a_while(self, wanted: Counter) -> Counter:
        """Return them when they are as wanted: a server closes them in its own time."""
        deadline = time.monotonic() + LIMIT
        while (found := self.connections()) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


@contextmanager
def served(*, pool: bool) -> Iterator[Server]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.apps.load.asgi:application"),
                *("--fd", str(listener.fileno()), "--lifespan", "off"),
                *("--log-level", "warning", "--backlog", "512"),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.apps.load.settings",
                "CQRS_LOAD_DATABASE": str(connection.settings_dict["NAME"]),
                "CQRS_LOAD_POOL": "1" if pool else "",
                "PYTHONPATH": str(ROOT),
            },
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        yield server
    finally:
        process.terminate()
        _, said = process.communicate(timeout=LIMIT)
        print(said)
        # In development mode asyncio says what took long, as it does on a busy machine.
        server.errors = re.sub(r"(?m)^Executing <.* took [\d.]+ seconds\n", "", said)


def where(number: int) -> tuple[str, str]:
    """Return the method and the path of a request: every way in takes its turn."""
    fails = "?fails=1" if number % 10 == 9 else ""
    return [
        ("GET", f"/record/{number}/sync{fails}"),
        ("GET", f"/record/{number}/async{fails}"),
        ("POST", f"/post/{number}"),
    ][number % 3]


async def load(url: str, count: int, at_once: int) -> list[httpx.Response]:
    turn = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=0)

    async def request(client: httpx.AsyncClient, number: int) -> httpx.Response:
        method, path = where(number)
        async with turn:
            return await client.request(
                method,
                path,
                headers={"X-Request": f"r{number}"},
                json={"fails": number % 10 == 9} if method == "POST" else None,
            )

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=LIMIT) as client:
        assert (await client.get("/count")).json() == {"result": 0}
        return await asyncio.gather(*(request(client, n) for n in range(count)))


def outcome(response: httpx.Response) -> object:
    body = response.json()
    return body["result"] if isinstance(body, dict) and "result" in body else body


@pytest.mark.long
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "no pool"])
def test_concurrent_requests_lose_and_mix_nothing(pool):
    """
    Of 200 concurrent requests through ASGI every one is written whole or, where it
    fails, not at all; each row has the header of its own request, and no connection
    stays behind. [B15.1]
    """
    on_postgresql = connection.vendor == "postgresql"
    if pool and not on_postgresql:
        pytest.skip("Django has a pool for PostgreSQL alone.")
    count = 200 if on_postgresql else 60
    # Without a pool each request at work has a connection: servers have some 100.
    at_once = count if pool else 40 if connection.vendor != "sqlite" else 10

    with served(pool=pool) as server:
        responses = asyncio.run(load(server.url, count, at_once))
        expected = Counter({"idle": 1}) if pool else Counter()
        left = (
            server.connections() if pool else server.connections_after_a_while(expected)
        )

    assert server.errors == ""
    failing = {number for number in range(count) if number % 10 == 9}
    statuses = {n: response.status_code for n, response in enumerate(responses)}
    assert statuses == {n: 409 if n in failing else 200 for n in range(count)}
    assert [
        outcome(response) for n, response in enumerate(responses) if n not in failing
    ] == [f"r{n}" for n in range(count) if n not in failing]

    written = list(Note.objects.values_list("number", "text", "slug"))
    assert sorted(written) == sorted(
        (n, f"r{n}", f"r{n} {kind}")
        for n in range(count)
        if n not in failing
        for kind in ("record", "event", "nested")
    )

    if pool:  # they wait in the pool, none of them in a transaction
        assert set(left) <= {"idle"}
        assert sum(left.values()) <= 20
    else:
        assert left == Counter()


@pytest.mark.long
def test_clients_that_go_away_leave_nothing_half_done():
    """
    Requests whose clients give up are written whole or not at all, and the server goes
    on with every connection back. [B15.3]
    """
    count = 40 if connection.vendor != "sqlite" else 15

    given_up = []

    async def impatient(url: str) -> None:
        async def request(client: httpx.AsyncClient, number: int) -> None:
            method, path = where(number)
            try:
                await client.request(
                    method,
                    path,
                    headers={"X-Request": f"r{number}"},
                    json={} if method == "POST" else None,
                    timeout=httpx.Timeout(LIMIT, read=0.02 * number),
                )
            except httpx.ReadTimeout:
                given_up.append(number)

        async with httpx.AsyncClient(base_url=url, timeout=LIMIT) as client:
            assert (await client.get("/count")).json() == {"result": 0}
            await asyncio.gather(*(request(client, n) for n in range(count)))
            assert (await client.get("/count")).status_code == 200

    with served(pool=False) as server:
        asyncio.run(impatient(server.url))
        left = server.connections_after_a_while(Counter())

    assert given_up
    assert "Traceback" not in server.errors
    assert left == Counter()
    notes = Counter(Note.objects.values_list("text", flat=True))
    assert set(notes.values()) <= {3}
    assert all(
        slug.startswith(f"{text} ")
        for text, slug in Note.objects.values_list("text", "slug")
    )
