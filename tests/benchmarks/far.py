"""A server that is 1 ms away: a proxy before the one that is near."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import connections

ROOT = Path(__file__).resolve().parent.parent.parent
ALIAS = "far"
DELAY = 0.0005
"""Seconds that each direction takes longer, so a round trip takes 1 ms longer."""


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass bytes on, each some time after it came, however many are on their way."""
    loop = asyncio.get_running_loop()
    while data := await source.read(2**16):
        loop.call_later(DELAY, target.write, data)
    loop.call_later(DELAY, target.close)


async def serve(host: str, port: int) -> None:
    """Pass connections on to a server; print the port that they come in by."""

    async def connected(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        from_server, to_server = await asyncio.open_connection(host, port)
        await asyncio.gather(
            _carry(reader, to_server),
            _carry(from_server, writer),
            return_exceptions=True,
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextmanager
def server(alias: str) -> Iterator[str]:
    """Yield the alias of the database of another alias, as if it were far away."""
    near = connections[alias].settings_dict
    place = near["HOST"] or "127.0.0.1", str(near["PORT"] or 5432)
    proxy = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.far", *place],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline())
        connections[ALIAS].settings_dict.update(
            {**near, "HOST": "127.0.0.1", "PORT": port}
        )
        yield ALIAS
    finally:
        connections[ALIAS].close()
        proxy.kill()
        proxy.communicate()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
