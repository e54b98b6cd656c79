"""Admin pages that stay fast on tables of any size: lists, filters, long texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.translation import gettext

if TYPE_CHECKING:
    Mixin = admin.ModelAdmin[Any]
    TypedModelAdmin = admin.ModelAdmin[Any]
    TypedPaginator = Paginator[Any]
else:  # Django's own classes are not generic
    Mixin = object
    TypedModelAdmin = admin.ModelAdmin
    TypedPaginator = Paginator

LISTED: Final = 10_000
"""The maximum number of rows in a list: nobody pages further."""

RECENT: Final = 1_000
"""The number of newest rows among which filters look for their choices."""

SEARCHED: Final = 100_000
"""The number of newest rows that are searched by a column without an index."""

LONGEST: Final = 100_000
"""The number of characters of a payload or a traceback that are shown."""


class BoundedPaginator(TypedPaginator):
    """Counts no further than a list goes, since a table may have a million rows."""

    @cached_property
    def count(self) -> int:
        """Return the number of rows in the list."""
        return min(self._counted, LISTED)

    @property
    def is_bounded(self) -> bool:
        """Return whether there are more rows than the list has."""
        return self._counted > LISTED

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by().values("pk")[: LISTED + 1].count())


class RecentFilter(admin.SimpleListFilter):
    """Filters by a column; the choices are its values in the newest rows."""

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the choices, including one that is already chosen."""
        name = str(self.parameter_name)
        newest = model_admin.get_queryset(request).order_by("-pk")
        found = set(newest.values_list(name, flat=True)[:RECENT]) - {None}
        if self.value():
            found.add(self.value())
        return [(value, value) for value in sorted(found)]

    def has_output(self) -> bool:
        """Always show it, so that its place stays the same."""
        return True

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the rows with the chosen value."""
        value = self.value()
        if value is None:
            return None
        return queryset.filter(**{str(self.parameter_name): value})


def is_newest(rows: QuerySet[Any]) -> Q:
    """Return the condition for the newest rows of a table."""
    keys = rows.model._default_manager.using(rows.db).values_list("pk", flat=True)
    last = list(keys.order_by("-pk")[SEARCHED : SEARCHED + 1])
    return Q(pk__gt=last[0]) if last else Q()


class ReadOnly:
    """A mixin for rows that only this package writes and deletes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: nobody adds a row by hand."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: a row records what happened."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: rows are deleted when they expire."""
        return False


def as_text(text: str) -> str:
    """Return text with its spaces and lines preserved."""
    if len(text) > LONGEST:
        more = gettext("… and %(count)d more characters")
        text = f"{text[:LONGEST]}\n{more % {'count': len(text) - LONGEST}}"
    # Content larger than the page can be scrolled, also by keyboard.
    return format_html('<pre class="cqrs-text" tabindex="0">{}</pre>', text or "-")
