"""Shops that several tests use, each filled once for all processes of a run."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.example.shop import Shop

if TYPE_CHECKING:
    from collections.abc import Callable

PRINTED = ("first.txt", "second.txt")


@pytest.fixture(scope="session")
def once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Shop], None]], Shop]:
    """Return what fills a shop once for all processes; each gets a copy of its own."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent

    def once(name: str, fill: Callable[[Shop], None]) -> Shop:
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (common / name).exists():
                shop = Shop(tmp_path_factory.mktemp(name))
                fill(shop)
                shop.folder.rename(common / name)
        folder = tmp_path_factory.mktemp("shops") / name
        return Shop(shutil.copytree(common / name, folder))

    return once


@pytest.fixture(scope="session")
def demo_shop(once: Callable[[str, Callable[[Shop], None]], Shop]) -> Shop:
    """The shop of two demos, with what these have printed into a pipe."""

    def run(shop: Shop) -> None:
        # Without the log of statements that DEBUG keeps, it takes less time.
        shop.env["DEBUG"] = "False"
        shop.manage("migrate", "--verbosity", "0")
        for name in PRINTED:
            (shop.folder / name).write_text(shop.manage("demo"))

    return once("demo", run)


@pytest.fixture(scope="session")
def demos(demo_shop: Shop) -> list[str]:
    """What the demo prints into a pipe, the first and the second time."""
    return [(demo_shop.folder / name).read_text() for name in PRINTED]
