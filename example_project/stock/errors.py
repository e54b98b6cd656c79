"""The reasons for which the stock app refuses a command."""

from __future__ import annotations

from common.errors import Refused


class OutOfStock(Refused):
    """The stock is too low."""
