"""The OpenAPI document of the views of messages."""

from __future__ import annotations

from django_cqrs.openapi.document import openapi_document

__all__ = ["openapi_document"]
