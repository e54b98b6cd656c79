"""The reasons for which the payments app refuses a command."""

from __future__ import annotations

from common.errors import Refused


class NoCreditAccount(Refused):
    """The customer may not buy on credit."""


class NothingToPay(Refused):
    """The order is paid, was called off, or does not exist."""


class CreditLimitExceeded(Refused):
    """The customer would owe more than the credit limit."""
