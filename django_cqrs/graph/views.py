"""The views of a project, found in its URLconf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.urls import get_resolver


def views_of_project() -> list[tuple[str, Any]]:
    """Import and return all views, each after its path as the URLconf writes it."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    # Django's own check reports errors in it.
    with suppress(Exception):
        return list(_views_in(get_resolver().url_patterns, ""))
    return []


def _views_in(patterns: Iterable[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for each in patterns:
        path = f"{prefix}{each.pattern}"
        if hasattr(each, "url_patterns"):
            yield from _views_in(each.url_patterns, path)
        else:
            yield path, each.callback
