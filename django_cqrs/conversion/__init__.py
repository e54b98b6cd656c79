"""Payloads to JSON and back, with the project's converters and upcasters."""

from __future__ import annotations

from django_cqrs.conversion.adapters import to_json, to_jsonable
from django_cqrs.conversion.converters import converter
from django_cqrs.conversion.upcasting import upcaster

__all__ = [
    "converter",
    "to_json",
    "to_jsonable",
    "upcaster",
]
