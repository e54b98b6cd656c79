"""Money: an amount that never forgets its currency."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from django_cqrs.conversion import converter

CURRENCIES = ("EUR", "GBP", "USD")
CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in whole cents of one currency."""

    amount: Decimal
    currency: str = "EUR"

    def __post_init__(self) -> None:
        if self.currency not in CURRENCIES:
            raise ValueError(f"{self.currency!r} is not one of {', '.join(CURRENCIES)}")
        if not self.amount.is_finite() or self.amount != self.amount.quantize(CENT):
            raise ValueError(f"{self.amount} is not an amount in whole cents")

    def __str__(self) -> str:
        return f"{self.amount:.2f} {self.currency}"

    def __add__(self, other: Money) -> Money:
        if other.currency != self.currency:
            raise ValueError(f"cannot add {other.currency} to {self.currency}")
        return Money(self.amount + other.amount, self.currency)

    def __mul__(self, factor: int) -> Money:
        return Money(self.amount * factor, self.currency)


# With this pair a message may have Money fields: they travel as "12.50 EUR".
@converter
def money_to_text(money: Money) -> str:
    """Write money as people read it."""
    return str(money)


@converter
def text_to_money(text: str) -> Money:
    """Read ``12.50 EUR``; a ValueError becomes an error of the field."""
    amount, _, currency = text.strip().partition(" ")
    try:
        return Money(Decimal(amount), currency)
    except InvalidOperation:
        raise ValueError(
            f"{text!r} is not an amount with a currency, such as '12.50 EUR'"
        ) from None
