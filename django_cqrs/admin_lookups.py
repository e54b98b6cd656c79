"""Restrict the lookups in an admin list's address to those that its page offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import get_fields_from_path
from django.core.exceptions import FieldDoesNotExist
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object

_create: Any = admin.FieldListFilter.create
_LARGEST_KEY = 2**63 - 1


class OfferedLookupsMixin(_ModelAdmin):
    """
    Allows only the parameters of a list's own filters in its address.

    Django allows every lookup of a local field, so a user who may only view a list
    could probe a value that the list masks, one character at a time.
    """

    def lookup_allowed(
        self, lookup: str, value: Any, request: HttpRequest | None = None
    ) -> bool:
        """Return whether a filter of the page has this parameter."""
        return lookup in set(self._offered(request))

    def _offered(self, request: Any) -> Iterator[str]:
        if self.date_hierarchy:
            yield from (f"{self.date_hierarchy}__{u}" for u in ("year", "month", "day"))
        filters: Any = self.get_list_filter(request)
        for each in filters:
            if isinstance(each, type) and issubclass(each, admin.SimpleListFilter):
                yield str(each.parameter_name)
                continue
            path, make = (
                each if isinstance(each, (tuple, list)) else (str(each), _create)
            )
            try:
                field = get_fields_from_path(self.model, path)[-1]
            except FieldDoesNotExist:  # the admin's own check reports it
                continue
            found: Any = make(field, request, {}, self.model, self, field_path=path)
            yield from found.expected_parameters()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows; none if the address has a text that no row can contain."""
        rows = super().get_queryset(request)
        # PostgreSQL refuses NUL in any column.
        texts = (text for _, values in request.GET.lists() for text in values)
        return rows.none() if any("\0" in text for text in texts) else rows

    def response_action(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        *args: Any,
        **options: Any,
    ) -> HttpResponse | None:
        """Run the chosen action; refuse keys that no row can have."""
        keys = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        if all(_is_key(key) for key in keys):
            return super().response_action(request, queryset, *args, **options)
        text = gettext("What was selected has no such id. Nothing was done.")
        self.message_user(request, text, messages.WARNING)
        return HttpResponseRedirect(request.get_full_path())


def _is_key(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text[:20]) <= _LARGEST_KEY
