"""Business interfaces: protocols whose methods send messages."""

from __future__ import annotations

from django_cqrs.modelling.interfaces.decorators import (
    business_interface,
    business_method,
)
from django_cqrs.modelling.interfaces.implementing import implement, problems_of

__all__ = [
    "business_interface",
    "business_method",
    "implement",
    "problems_of",
]
