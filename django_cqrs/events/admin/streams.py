"""Streams in the admin: their events in pages, and the state after each of them."""

from __future__ import annotations

from typing import Any, Final

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import DatabaseFilter, database_of, with_database
from django_cqrs.admin_links import timeline_link
from django_cqrs.admin_lists import RecentFilter, as_text
from django_cqrs.conversion.masking import MASK
from django_cqrs.events.admin.tables import EventsAdmin
from django_cqrs.events.decoding import decoder_of
from django_cqrs.events.models import Snapshot, StoredEvent, Stream
from django_cqrs.events.reading import stream_page
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.redaction import NOT_SHOWN, pretty, redact, stream_labels
from django_cqrs.events.snapshot_rebuilding import storages_of
from django_cqrs.events.state_history import state_after, storage_of, subject_in
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.exceptions import InvalidOption

PAGE: Final = 25
"""The number of events on a page of a stream."""


class CategoryFilter(RecentFilter):
    """Filters streams by category."""

    title = _("category")
    parameter_name = "category"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the categories of the newest streams, and those of classes."""
        own: Any = model_admin
        found = dict(super().lookups(request, model_admin))
        for storage in storages_of(own.registry_of(request)):
            found.setdefault(storage.streams.category, storage.streams.category)
        return sorted(found.items())


def found_streams(term: str, using: str, categories: list[str]) -> QuerySet[Stream]:
    """
    Return the streams that a term names: by their whole name, or by their key.

    Args:
        term: the term.
        using: the alias of the database.
        categories: the categories in which a key is looked for, since it has no index
            of its own.

    """
    rows = Stream.objects.using(using)
    try:
        name = stream_name(term)
    except InvalidOption:
        return rows.none()
    wanted = Q(category=name.category, key=name.key)
    if categories:
        wanted |= Q(category__in=categories, key=term)
    return rows.filter(wanted)


@admin.register(Stream)
class StreamAdmin(EventsAdmin):
    """The streams, and the way to their events."""

    list_display = ("label", "last_version", "last_event", "created_at", "condition")
    list_filter = (DatabaseFilter, CategoryFilter)
    search_fields = ("key",)
    search_help_text = _(
        "The name of a stream, or the key behind its hyphen (exact matches only)."
    )

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the newest first; of one category, the order of its index."""
        return ("category", "key") if request.GET.get("category") else ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Stream]:
        """Return the streams with their last events."""
        rows: QuerySet[Stream] = super().get_queryset(request)
        last = StoredEvent.objects.filter(stream_id=OuterRef("pk")).order_by("-version")
        return rows.annotate(
            last_number=Subquery(last.values("version")[:1]),
            last_time=Subquery(last.values("recorded_at")[:1]),
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Stream], search_term: str
    ) -> tuple[QuerySet[Stream], bool]:
        """Search for an exact name or key; a masked one is not found."""
        term = search_term.strip()
        if not term:
            return queryset, False
        choices = CategoryFilter(request, {}, Stream, self).lookup_choices
        categories = [str(value) for value, _title in choices]
        using = queryset.db
        found = list(found_streams(term, using, categories)[: len(categories) + 1])
        labels = stream_labels(found, self.registry_of(request).routes.types, using)
        keys = [each.pk for each in found if labels[each.pk] == str(each)]
        return queryset.filter(pk__in=keys), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, with its names as the user may see them."""
        changes = super().get_changelist_instance(request)
        rows: Any = changes.result_list
        types = self.registry_of(request).routes.types
        labels = stream_labels(rows, types, rows.db)
        for each in rows:
            each.shown = labels[each.pk]
        return changes

    @admin.display(description=_("stream"))
    def label(self, obj: Any) -> str:
        """Return its name, without sensitive data."""
        shown: str = obj.shown
        return shown

    @admin.display(description=_("version"))
    def last_version(self, obj: Any) -> Any:
        """Return the number of its last event."""
        return obj.last_number or "-"

    @admin.display(description=_("last event"))
    def last_event(self, obj: Any) -> Any:
        """Return the time of its last event."""
        return obj.last_time

    @admin.display(description=_("state"))
    def condition(self, obj: Stream) -> Any:
        """Return whether it is archived or deleted."""
        if obj.deleted_at is not None:
            return _("deleted")
        return _("archived") if obj.archived_at is not None else _("open")

    # A stream -------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """Add the pages of the states."""
        view = self.admin_site.admin_view(self.version_view)
        name = f"{self.opts.app_label}_{self.opts.model_name}_version"
        own = path("<int:object_id>/versions/<int:version>/", view, name=name)
        return [own, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show the events of a stream, a page at a time, the newest first."""
        stream = self._asked_for(request, object_id)
        if stream is None:
            return self.gone(request, object_id)
        label = self._label(request, stream)
        may_see = self.may_view(request, StoredEvent)
        events, older, newer = self._events(request, stream) if may_see else ([], 0, 0)
        change = (stream.pk,)
        storage = storage_of(stream.category, self.registry_of(request))
        context = {
            "title": label,
            "stream": stream,
            "condition": self.condition(stream),
            "last_version": self.last_version(stream),
            "snapshot": Snapshot.objects.using(self.using(request))
            .filter(pk=stream.pk)
            .defer("state")
            .first(),
            "may_see_events": may_see,
            "has_state": storage is not None,
            "events": [self._row(request, stream, each) for each in events],
            "older": older and self.address(request, "change", *change, before=older),
            "newer": newer and self.address(request, "change", *change, after=newer),
            "list_address": self.address(request, "changelist"),
            "timeline_url": self._timeline(request, stream, label),
            **(extra_context or {}),
        }
        return self.page(request, "stream.html", context)

    def _asked_for(self, request: HttpRequest, object_id: str) -> Any:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return self.get_object(request, object_id)

    def _label(self, request: HttpRequest, stream: Stream) -> str:
        types = self.registry_of(request).routes.types
        return stream_labels([stream], types, self.using(request))[stream.pk]

    def _timeline(self, request: HttpRequest, stream: Stream, label: str) -> str:
        """Return the address of the timeline of the stream's object."""
        if label != str(stream):  # the address would reveal it
            return ""
        name = StreamName(stream.category, stream.key)
        subject = subject_in(name, self.registry_of(request))
        address = timeline_link(self.admin_site, request, subject=subject)
        return with_database(address, database_of(request, Stream))

    def _events(
        self, request: HttpRequest, stream: Stream
    ) -> tuple[list[Recorded], int, int]:
        """Return a page of events, and the versions at which the next ones begin."""
        before, after = _number(request, "before"), _number(request, "after")
        bounds: dict[str, Any] = {"backwards": True}
        if before:
            bounds["last"] = before - 1
        elif after:
            bounds = {"first": after + 1}
        connection = connections[self.using(request)]
        decoder = decoder_of(self.registry_of(request).routes.types)
        name = StreamName(stream.category, stream.key)
        page = stream_page(connection, name, decoder, limit=PAGE + 1, **bounds)
        events = page.recorded
        has_more = len(events) > PAGE
        events = events[:PAGE]
        if "first" in bounds:
            events.reverse()
        if not events:
            return [], 0, 0
        newest, oldest = events[0].version or 0, events[-1].version or 0
        is_last = newest >= (getattr(stream, "last_number", 0) or 0)
        goes_on = oldest > stream.first_version if "first" in bounds else has_more
        return events, oldest if goes_on else 0, 0 if is_last else newest

    def _row(
        self, request: HttpRequest, stream: Stream, recorded: Recorded
    ) -> dict[str, Any]:
        """Return an event for the templates."""
        seen = redact(recorded, self.registry_of(request).routes.types)
        timeline = timeline_link(
            self.admin_site, request, correlation_id=recorded.correlation_id
        )
        return {
            "event": recorded,
            "payload": as_text(pretty(seen.payload)) if not seen.reason else "",
            "reason": f"{NOT_SHOWN} {seen.reason}" if seen.reason else "",
            "tags": seen.tags,
            "address": self.address(
                request,
                "change",
                recorded.link_to or recorded.position,
                model=StoredEvent,
            ),
            "state_address": self.address(
                request, "version", stream.pk, recorded.version
            ),
            "timeline": with_database(timeline, database_of(request, Stream)),
        }

    # A version ------------------------------------------------------------------------

    def version_view(
        self, request: HttpRequest, object_id: int, version: int
    ) -> HttpResponse:
        """Show the state after an event, and what the event changed in it."""
        stream = self._asked_for(request, str(object_id))
        if not self.may_view(request, StoredEvent):
            raise PermissionDenied
        if stream is None:
            raise Http404
        using, registry = self.using(request), self.registry_of(request)
        name = StreamName(stream.category, stream.key)
        page = stream_page(
            connections[using],
            name,
            decoder_of(registry.routes.types),
            first=version,
            last=version,
            limit=1,
        )
        if not page.recorded:
            raise Http404
        last = getattr(stream, "last_number", version) or version

        def address(number: int) -> str:
            if not stream.first_version <= number <= last or number == version:
                return ""
            return self.address(request, "version", stream.pk, number)

        state = state_after(name, version, registry=registry, using=using)
        context = {
            "title": gettext("Version %(version)d of %(stream)s")
            % {"version": version, "stream": self._label(request, stream)},
            "version": version,
            "last_version": last,
            "row": self._row(request, stream, page.recorded[0]),
            "state": state,
            "state_text": as_text(state.state),
            "is_masked": MASK in state.state
            or any(MASK in each.before + each.after for each in state.changes),
            "stream_address": self.address(
                request, "change", stream.pk, before=version + PAGE // 2
            ),
            "first": address(stream.first_version),
            "previous": address(version - 1),
            "next": address(version + 1),
            "last": address(last),
        }
        return self.page(request, "version.html", context)


def _number(request: HttpRequest, name: str) -> int:
    """Return a version in an address; 0 if there is none."""
    text = request.GET.get(name, "")
    is_number = text.isascii() and text.isdecimal() and len(text) < len(str(2**31))
    return int(text) if is_number else 0
