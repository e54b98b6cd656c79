"""The forms of the shop's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms

from common.errors import Refused, problems
from django_cqrs import query_bus
from orders.messages import new_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.forms import BoundField

    from django_cqrs.exceptions import MessageConversionError

ROWS = 4


def customer_choices() -> list[tuple[str, str]]:
    """Offer everybody who may order."""
    customers = query_bus.ask(route="customer.list")
    return [("", "Who is ordering?"), *((row.email, row.name) for row in customers)]


def product_choices() -> list[tuple[str, str]]:
    """Offer the catalogue with its prices."""
    products = query_bus.ask(route="product.list")
    return [
        ("", "Choose a product"),
        *((row.sku, f"{row.name} · {row.price}") for row in products),
    ]


class OrderForm(forms.Form):
    """
    Renders an order and collects the user's input.

    PlaceOrder and its handler know the rules of an order; this form does not.
    The fields are called like the paths of the message (``lines.0.quantity``), so
    an error finds its field by name.
    """

    # Made when the form is rendered, so that sending it twice places one order.
    reference = forms.CharField(widget=forms.HiddenInput, initial=new_reference)
    customer = forms.ChoiceField(choices=customer_choices)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for row in range(ROWS):
            self.fields[f"lines.{row}.sku"] = forms.ChoiceField(
                label=f"Product {row + 1}", choices=product_choices, required=False
            )
            self.fields[f"lines.{row}.quantity"] = forms.CharField(
                label="Quantity",
                required=False,
                # Not a number field: the message checks the quantity.
                widget=forms.TextInput(
                    attrs={"inputmode": "numeric", "autocomplete": "off"}
                ),
            )

    def rows(self) -> Iterator[tuple[BoundField, BoundField]]:
        """Pair the fields as the page shows them."""
        for row in range(ROWS):
            yield self[f"lines.{row}.sku"], self[f"lines.{row}.quantity"]

    def payload(self) -> dict[str, Any]:
        """Shape the form like PlaceOrder, without its empty rows and cells."""
        lines = [self.line(row) for row in self.filled_rows()]
        return {
            "reference": self.cleaned_data["reference"],
            "customer": self.cleaned_data["customer"],
            "lines": lines,
        }

    def line(self, row: int) -> dict[str, str]:
        cells = {
            name: self.cleaned_data[f"lines.{row}.{name}"]
            for name in ("sku", "quantity")
        }
        return {name: value for name, value in cells.items() if value}

    def filled_rows(self) -> list[int]:
        return [row for row in range(ROWS) if self.line(row)]

    def add_problems(self, error: MessageConversionError | Refused) -> None:
        """Put every problem beside the field that it speaks of."""
        # All fields are found first: a field with an error leaves cleaned_data.
        found = [(self.field_for(field), text) for field, text in problems(error)]
        for name, text in found:
            self.add_error(name, text)

    def field_for(self, path: str) -> str | None:
        """Find the field for a path of the message; None is the form as a whole."""
        first, *rest = path.split(".")
        if first == "lines" and rest:
            # The message has no empty rows, the form may.
            row = self.filled_rows()[int(rest[0])]
            column = rest[1] if len(rest) > 1 else "quantity"
            path = f"lines.{row}.{column}"
        return path if path in self.fields else None
