"""
The order book: a CSV file whose lines become commands.

Each line is placed, and then paid, which has it shipped, or cancelled, in one
transaction. A line that is refused leaves nothing behind and does not disturb its
neighbours; a line that was imported before is recognised by its reference.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import transaction

from common.errors import BAD_INPUT, Refused, problems
from django_cqrs import command_bus
from orders.errors import AlreadyPlaced
from orders.messages import CancelOrder
from payments.api import payments
from payments.messages import PayOrder
from storefront.data import DATA

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ORDER_BOOK = DATA / "orders.csv"
EXECUTOR = "order book"
COLUMNS = ("reference", "placed_on", "customer", "items", "total", "outcome")


class Line(NamedTuple):
    """A line of the file, with its number there."""

    number: int
    cells: list[str]


class RefusedLine(NamedTuple):
    """A line that was not imported, and why."""

    number: int
    reference: str
    reason: str


@dataclass(slots=True)
class Report:
    """What became of the lines."""

    placed: int = 0
    known: int = 0
    refused: list[RefusedLine] = field(default_factory=list)


def read_lines(path: Path = ORDER_BOOK) -> list[Line]:
    """Read the file, without its line of headings."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        next(reader)
        return [Line(reader.line_num, cells) for cells in reader]


def import_lines(lines: Iterable[Line]) -> Report:
    """Import what can be imported, and report the rest."""
    report = Report()
    for line in lines:
        try:
            import_line(line.cells)
        except AlreadyPlaced:
            report.known += 1
        except BAD_INPUT as error:
            reason = "; ".join(map(str, problems(error)))
            report.refused.append(RefusedLine(line.number, line.cells[0], reason))
        else:
            report.placed += 1
    return report


@transaction.atomic
def import_line(cells: list[str]) -> None:
    """Place the order of a line, and do with it what was done then."""
    if len(cells) != len(COLUMNS):
        raise Refused(f"{len(cells)} columns instead of {len(COLUMNS)}")
    values = dict(zip(COLUMNS, cells, strict=True))
    headers = {"executor_id": EXECUTOR}
    order_id = command_bus.dispatch(
        order_payload(values), route="order.place", headers=headers
    )
    if values["outcome"] == "shipped":
        payments.pay(PayOrder(order_id), executor=EXECUTOR)
    elif values["outcome"] == "cancelled":
        command_bus.dispatch(CancelOrder(order_id), headers=headers)


def order_payload(values: dict[str, str]) -> dict[str, Any]:
    """Shape a line like PlaceOrder; its texts are converted on the way."""
    items = (item.split() for item in values["items"].split(";") if item)
    return {
        "reference": values["reference"],
        "placed_on": values["placed_on"],
        "customer": values["customer"],
        "lines": [dict(zip(("quantity", "sku"), item, strict=False)) for item in items],
        "total": values["total"],
    }
