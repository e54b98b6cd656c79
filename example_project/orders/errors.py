"""The reasons for which the orders app says no."""

from __future__ import annotations

from common.errors import Refused


class UnknownOrder(Refused):
    """There is no such order."""


class UnknownCustomer(Refused):
    """There is no such customer."""


class UnknownProduct(Refused):
    """There is no such product."""


class OutOfStock(Refused):
    """There are not enough goods."""


class WrongTotal(Refused):
    """The promised total is not what the catalogue says."""


class AlreadyPlaced(Refused):
    """The reference was used before: this is the same order once more."""


class OrderIsClosed(Refused):
    """The order was shipped or cancelled before."""
