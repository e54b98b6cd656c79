"""Filters and paginators that stay fast on tables of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from django_cqrs import clock
from django_cqrs.outbox.models import Outcome, State, TaskStatus
from django_cqrs.outbox.statistics import is_delayed, is_pending, kept_channels
from django_cqrs.pipeline.tenancy import tenancy, tenant_of_request
from django_cqrs.tenant_options import COLUMN

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
"""The number of newest messages that are searched for a name or an endpoint."""


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


class _RecentFilter(admin.SimpleListFilter):
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


class ChannelFilter(_RecentFilter):
    """Filters messages by channel."""

    title = _("channel")
    parameter_name = "channel"


class TenantFilter(_RecentFilter):
    """Filters rows by tenant, on pages for all of them."""

    title = _("tenant")
    parameter_name = COLUMN

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the tenants of the newest rows; none on a page of one tenant."""
        if tenancy() is None or tenant_of_request() is not None:
            return []
        return super().lookups(request, model_admin)

    def has_output(self) -> bool:
        """Show it where there are tenants to choose from."""
        return bool(self.lookup_choices)


class EndpointFilter(_RecentFilter):
    """Filters messages by endpoint."""

    title = _("endpoint")
    parameter_name = "endpoint"


class NewestEndpointFilter(EndpointFilter):
    """Filters the newest messages by endpoint: an index would cost too many writes."""

    title = format_lazy(_("endpoint (of the newest {count})"), count=f"{SEARCHED:,}")

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest rows with the chosen value."""
        found = super().queryset(request, queryset)
        return None if found is None else found.filter(is_newest(found))


def is_newest(rows: QuerySet[Any]) -> Q:
    """Return the condition for the newest rows of a table."""
    keys = rows.model._default_manager.using(rows.db).values_list("pk", flat=True)
    last = list(keys.order_by("-pk")[SEARCHED : SEARCHED + 1])
    return Q(pk__gt=last[0]) if last else Q()


class NewestOutcomeFilter(admin.SimpleListFilter):
    """Filters the newest journal entries by outcome, for the same reason."""

    title = format_lazy(_("outcome (of the newest {count})"), count=f"{SEARCHED:,}")
    parameter_name = "outcome__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return list(Outcome.choices)

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest entries with the chosen outcome."""
        if self.value() not in Outcome.values:
            return None
        return queryset.filter(is_newest(queryset), outcome=self.value())


class NewestStatusFilter(admin.SimpleListFilter):
    """Filters the newest results of tasks by status."""

    title = format_lazy(_("status (of the newest {count})"), count=f"{SEARCHED:,}")
    parameter_name = "status__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return list(TaskStatus.choices)

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest results with the chosen status."""
        if self.value() not in TaskStatus.values:
            return None
        return queryset.filter(is_newest(queryset), status=self.value())


class _ChannelsFilter(admin.SimpleListFilter):
    """Filters by a column that follows the channel in an index: names all channels."""

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the rows that meet the chosen condition."""
        condition = self.condition()
        if condition is None:
            return None
        channels = tuple(kept_channels(queryset.db))
        return queryset.filter(condition, channel__in=channels)

    def condition(self) -> Q | None:
        """Return the chosen condition, None for everything."""
        raise NotImplementedError


class StateFilter(_ChannelsFilter):
    """Filters messages by the state of their rows."""

    title = _("state")
    parameter_name = "state__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [(str(value), label) for value, label in State.choices]

    def condition(self) -> Q | None:
        """Return the chosen condition, None for everything."""
        chosen = self.value() or ""
        known = {str(state.value): state for state in State}
        return Q(state=known[chosen]) if chosen in known else None


class StandingFilter(_ChannelsFilter):
    """Filters messages as the figures of channels count them, whatever their state."""

    title = _("standing")
    parameter_name = "standing"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [
            ("pending", _("pending")),
            ("delayed", _("delayed")),
            ("parked", _("parked")),
        ]

    def condition(self) -> Q | None:
        """Return the chosen condition, None for everything."""
        now = clock.now()
        conditions = {
            "pending": is_pending(now),
            "delayed": is_delayed(now),
            "parked": Q(state=State.PARKED),
        }
        return conditions.get(self.value() or "")
