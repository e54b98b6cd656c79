"""The reasons for which the payments app says no."""

from __future__ import annotations

from common.errors import Refused


class NoCreditAccount(Refused):
    """The customer may not buy on credit."""


class NothingToPay(Refused):
    """The order is paid, or was called off, or is none."""


class CreditLimitExceeded(Refused):
    """The customer would owe more than the credit limit."""
