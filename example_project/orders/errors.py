"""The reasons for which the orders app refuses a command."""

from __future__ import annotations

from common.errors import Refused


class UnknownOrder(Refused):
    """The order does not exist."""


class UnknownCustomer(Refused):
    """The customer does not exist."""


class UnknownProduct(Refused):
    """The product does not exist."""


class WrongTotal(Refused):
    """The promised total differs from the prices in the catalogue."""


class AlreadyPlaced(Refused):
    """The reference was used before: this is the same order again."""


class OrderIsClosed(Refused):
    """The order was shipped or cancelled before."""
