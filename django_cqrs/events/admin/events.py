"""Stored events in the admin: found by position, id, tag, stream, name or time."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.contrib import admin
from django.db import connections, router
from django.db.models import Max, Min, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import DatabaseFilter, database_of, with_database
from django_cqrs.admin_links import MessageLink, timeline_link
from django_cqrs.admin_lists import SEARCHED, RecentFilter, as_text, is_newest
from django_cqrs.conversion.masking import MASK
from django_cqrs.events.admin.streams import found_streams
from django_cqrs.events.admin.tables import EventsAdmin, link_to
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.models import EventTag, StoredEvent, Stream
from django_cqrs.events.reading import events_where
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.redaction import NOT_SHOWN, pretty, redact, stream_labels

MASKED: Final = _(
    "%(mask)s stands for a sensitive value, or for a field that the class does not "
    "have in this version, which may have been sensitive."
)
"""The explanation of a page with masks in it."""

LINKED: Final = 200
"""The number of events that a timeline links to."""

TAGGED: Final = 1_000
"""The number of newest events that a search for a tag finds."""


class EventNameFilter(RecentFilter):
    """Filters the newest events by name: an index would cost each append a write."""

    title = format_lazy(_("name (of the newest {count})"), count=f"{SEARCHED:,}")
    parameter_name = "name"

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Return the newest events with the chosen name."""
        found = super().queryset(request, queryset)
        return None if found is None else found.filter(is_newest(found))


@admin.register(StoredEvent)
class StoredEventAdmin(EventsAdmin):
    """The events of the whole store, the newest first."""

    ordering = ("-position",)
    list_display = ("position", "recorded_at", "name", "stream_link", "version")
    list_filter = (DatabaseFilter, EventNameFilter)
    search_fields = ("position",)
    search_help_text = format_lazy(
        _(
            "A position, an event id, a correlation id, a tag, the name of a stream, "
            "the name of an event (among the newest {count}), or a time such as "
            "2026-11-30 14:00, for the events until then."
        ),
        count=f"{SEARCHED:,}",
    )
    change_form_template = "admin/django_cqrs_events/event.html"
    readonly_fields = (
        *("stream_link", "payload_text", "headers_text", "tags_text"),
        "original",
    )
    fieldsets = (
        (None, {"fields": ("position", "stream_link", "version", "name", "shape")}),
        (_("Content"), {"fields": ("payload_text", "headers_text", "tags_text")}),
        (
            _("Origin"),
            {
                "fields": (
                    *("recorded_at", "event_id", "correlation_id", "causation_id"),
                    "original",
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[StoredEvent]:
        """Return the rows without the columns that pages read by themselves."""
        rows: QuerySet[StoredEvent] = super().get_queryset(request)
        return rows.defer("payload", "headers")

    # Search ---------------------------------------------------------------------------

    def get_search_results(
        self,
        request: HttpRequest,
        queryset: QuerySet[StoredEvent],
        search_term: str,
    ) -> tuple[QuerySet[StoredEvent], bool]:
        """Search for an exact position, id, tag or name, or up to a time."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if term.isascii() and term.isdecimal():
            is_possible = int(term[:20]) < 2**63
            return queryset.filter(pk=int(term) if is_possible else -1), False
        try:
            value = UUID(term)
        except ValueError:
            return self._search_text(request, queryset, term), False
        # Two indexes, of which a server may use only one in a condition with OR.
        if queryset.filter(event_id=value).exists():
            return queryset.filter(event_id=value), False
        return queryset.filter(correlation_id=value), False

    def _search_text(
        self, request: HttpRequest, queryset: QuerySet[StoredEvent], term: str
    ) -> QuerySet[StoredEvent]:
        moment = _moment_in(term)
        if moment is not None:
            return queryset.filter(pk__lte=_position_at(moment, queryset.db))
        types = self.registry_of(request).routes.types
        streams = list(found_streams(term, queryset.db, []))
        labels = stream_labels(streams, types, queryset.db)
        shown = [each.pk for each in streams if labels[each.pk] == str(each)]
        if shown:
            return queryset.filter(stream_id__in=shown)
        tagged = self._tagged(request, term, queryset.db)
        if tagged:
            return queryset.filter(pk__in=tagged)
        return queryset.filter(is_newest(queryset), name=term)

    def _tagged(self, request: HttpRequest, tag: str, using: str) -> list[int]:
        """Return the positions of events with a tag, unless it is masked there."""
        rows = EventTag.objects.using(using).filter(tag=tag).order_by("-position")
        positions = list(rows.values_list("position", flat=True)[:TAGGED])
        types = self.registry_of(request).routes.types
        found = []
        for start in range(0, len(positions), 500):
            some = positions[start : start + 500]
            marks = ", ".join(["%s"] * len(some))
            events = events_where(
                connections[using], f"e.position IN ({marks})", some, decoder_of(types)
            )
            found += [
                each.position for each in events if tag in redact(each, types).tags
            ]
        return found

    # A list ---------------------------------------------------------------------------

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, with the names of its streams."""
        changes = super().get_changelist_instance(request)
        rows: Any = changes.result_list
        self._note_streams(request, rows)
        return changes

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> StoredEvent | None:
        """Return an event, with the name of its stream and its content."""
        found: Any = super().get_object(request, object_id, from_field)
        if found is None:
            return None
        self._note_streams(request, [found])
        types = self.registry_of(request).routes.types
        events = events_where(
            connections[self.using(request)],
            "e.position = %s",
            [found.pk],
            decoder_of(types),
        )
        if not events:  # a link to an event that is gone
            return None
        found.recorded = events[0]
        found.seen = redact(found.recorded, types)
        if found.link_to is not None:
            address = self.address(request, "change", found.link_to)
            found.original_link = link_to(address, found.link_to)
        event: StoredEvent = found
        return event

    def _note_streams(self, request: HttpRequest, rows: Collection[Any]) -> None:
        using = self.using(request)
        keys = {each.stream_id for each in rows} - {None}
        streams = Stream.objects.using(using).filter(pk__in=keys)
        types = self.registry_of(request).routes.types
        labels = stream_labels(streams, types, using)
        may_follow = self.may_view(request, Stream)
        for each in rows:
            label = labels.get(each.stream_id, "-")
            address = ""
            if may_follow and each.stream_id in labels:
                address = self.address(
                    request,
                    "change",
                    each.stream_id,
                    model=Stream,
                    before=(each.version or 0) + 1,
                )
            each.stream_html = link_to(address, label)

    @admin.display(description=_("stream"))
    def stream_link(self, obj: Any) -> str:
        """Return its stream, at its version."""
        html: str = obj.stream_html
        return html

    # An event -------------------------------------------------------------------------

    @admin.display(description=_("payload"))
    def payload_text(self, obj: Any) -> str:
        """Return the payload as JSON, without sensitive data; or why it is hidden."""
        if obj.seen.reason:
            return f"{NOT_SHOWN} {obj.seen.reason}"
        content = pretty(obj.seen.payload)
        text = as_text(content)
        if MASK not in content:
            return text
        return format_html('{}<p class="help">{}</p>', text, MASKED % {"mask": MASK})

    @admin.display(description=_("headers"))
    def headers_text(self, obj: Any) -> str:
        """Return the headers as JSON."""
        return as_text(pretty(obj.seen.headers))

    @admin.display(description=_("tags"))
    def tags_text(self, obj: Any) -> str:
        """Return the tags, without sensitive data."""
        return ", ".join(obj.seen.tags) or "-"

    @admin.display(description=_("link to"))
    def original(self, obj: Any) -> str:
        """Return a link to the original of an event that stands in a second stream."""
        return getattr(obj, "original_link", "-")

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Show an event, with links to its timeline and to the state after it."""
        event = kwargs.get("obj")
        if event is not None:
            recorded: Recorded = event.recorded
            timeline = timeline_link(
                self.admin_site, request, correlation_id=recorded.correlation_id
            )
            context["timeline_url"] = with_database(
                timeline, database_of(request, StoredEvent)
            )
            if event.stream_id is not None and self.may_view(request, Stream):
                context["state_url"] = self.address(
                    request, "version", event.stream_id, event.version, model=Stream
                )
        return super().render_change_form(request, context, *args, **kwargs)


def _moment_in(term: str) -> datetime | None:
    """Return the time in a text, in the current time zone; None if it is not one."""
    try:
        moment = parse_datetime(term if ":" in term else f"{term} 00:00")
    except ValueError:
        return None
    if moment is None or not timezone.is_naive(moment):
        return moment
    return timezone.make_aware(moment)


def _position_at(moment: datetime, using: str) -> int:
    """
    Return the position of the last event until a time, about.

    Positions grow with time but for the transactions that overlap, so that a few steps
    of a search by halves find it without an index.
    """
    rows = StoredEvent.objects.using(using)
    ends = rows.aggregate(first=Min("pk"), last=Max("pk"))
    low, high = (ends["first"] or 0) - 1, ends["last"] or 0
    while low < high:
        middle = (low + high + 1) // 2
        at = (
            rows.filter(pk__gte=middle, pk__lte=high)
            .order_by("pk")
            .values_list("pk", "recorded_at")
            .first()
        )
        if at is None or _aware(at[1]) > moment:
            high = middle - 1
        else:
            low = at[0]
    return low


def _aware(moment: datetime) -> datetime:
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def links_to_events(
    site: admin.AdminSite,
    request: HttpRequest,
    correlation_ids: Collection[UUID],
    using: str,
) -> list[MessageLink]:
    """
    Return links to the events of a timeline, for :mod:`django_cqrs.admin_links`.

    Args:
        site: the admin site.
        request: the user's request.
        correlation_ids: of the timeline.
        using: the alias of the database.

    """
    if not site.is_registered(StoredEvent):
        return []
    own: Any = site.get_model_admin(StoredEvent)
    has_table = router.allow_migrate_model(using, StoredEvent)
    if not has_table or not own.has_view_permission(request):
        return []
    rows = StoredEvent.objects.using(using).filter(
        correlation_id__in=list(correlation_ids), link_to=None
    )
    columns = ("name", "position", "event_id", "causation_id")
    found = []
    ordered = rows.order_by("position").values_list(*columns)
    for name, position, *ids in ordered[:LINKED]:
        label = gettext("%(name)s at position %(position)d")
        values = {"name": name, "position": position}
        address = own.address(request, "change", position)
        found.append(MessageLink(label % values, address, *ids))
    return found
