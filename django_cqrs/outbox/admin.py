"""The desk: what waits and what is dead, in Django's admin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import Error, OperationalError, connections, router
from django.db.models import Max, Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.text import format_lazy
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_lookups import OfferedLookupsMixin
from django_cqrs.exceptions import FieldError, MessageConversionError
from django_cqrs.masking import MASK
from django_cqrs.outbox.batches import giving_way
from django_cqrs.outbox.desk import (
    MASKED,
    UNSEEN,
    Shown,
    reason_text,
    shown,
    shown_in_list,
)
from django_cqrs.outbox.glance import glance, idle_channels
from django_cqrs.outbox.mending import CannotMend, Draft, Mended, replay_mended
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    Outcome,
    Reason,
    State,
)
from django_cqrs.outbox.outages import is_not_migrated
from django_cqrs.outbox.pages import (
    BY_ID,
    DATABASE,
    CorrelationMixin,
    TimelineMixin,
    database_of,
    databases_of,
    urls_of,
    with_database,
)
from django_cqrs.outbox.statistics import (
    is_delayed,
    is_pending,
    kept_channels,
    statistics_of,
)
from django_cqrs.outbox.store import discard, put_back

if TYPE_CHECKING:
    _Mixin = admin.ModelAdmin[Any]
    _ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:  # Django's own take no parameter
    _Mixin = object
    _ModelAdmin = admin.ModelAdmin
    _Paginator = Paginator

__all__ = [
    "DeadLetterAdmin",
    "JournalEntryAdmin",
    "OutboxMessageAdmin",
    "TimelineMixin",
]

LISTED: Final = 10_000
"""How many rows a list has at the most: nobody pages through more."""

RECENT: Final = 1_000
"""Among how many of the newest rows filters look for their choices."""

SEARCHED: Final = 100_000
"""Among how many of the newest messages those of a name or an endpoint are found."""

LONGEST: Final = 100_000
"""How many characters of a payload or a traceback are shown."""

SHOWN: Final = 100
"""How many of the chosen are named before something is done with them."""

BATCH: Final = 500
"""How many are replayed or deleted in one transaction."""


class BoundedPaginator(_Paginator):
    """Counts no further than a list goes: a table may have a million rows."""

    @cached_property
    def count(self) -> int:
        """Return how many rows the list has."""
        return min(self._counted, LISTED)

    @property
    def is_bounded(self) -> bool:
        """Tell whether there are more rows than the list has."""
        return self._counted > LISTED

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by().values("pk")[: LISTED + 1].count())


class DatabaseFilter(admin.SimpleListFilter):
    """The rows of one database: each has an outbox of its own."""

    title = _("database")
    parameter_name = DATABASE

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the databases that may have the table, if they are several."""
        self._usual = router.db_for_read(model_admin.model)
        found = databases_of(model_admin.model)
        return [(alias, alias) for alias in found] if len(found) > 1 else []

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Yield them, of which one is always chosen."""
        chosen = self.value() or self._usual
        for alias, title in self.lookup_choices:
            yield {
                "selected": alias == chosen,
                "query_string": changelist.get_query_string({DATABASE: alias}),
                "display": title,
            }

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Leave the rows as they are: the page reads those of the database."""
        return None


class ChosenDatabaseMixin(_Mixin):
    """Reads the rows of the database that the address asks for."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows of that database."""
        rows = super().get_queryset(request)
        asked = database_of(request, self.model)
        return rows.using(asked) if asked else rows

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list; say so where the database does not have one."""
        asked = database_of(request, self.model)
        context = {"cqrs_database": asked, **(extra_context or {})}
        try:
            return super().changelist_view(request, context)
        except Error as error:
            if not asked or not (
                is_not_migrated(error) or isinstance(error, OperationalError)
            ):
                raise
        text = gettext("The database %(alias)s has no outbox, or is out of reach.")
        self.message_user(request, text % {"alias": asked}, messages.WARNING)
        return HttpResponseRedirect(request.path)


class _RecentFilter(admin.SimpleListFilter):
    """Filters by a column; its choices are what the newest rows have in it."""

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        """Return the choices, with one that is chosen already."""
        name = str(self.parameter_name)
        newest = model_admin.get_queryset(request).order_by("-pk")
        found = set(newest.values_list(name, flat=True)[:RECENT])
        if self.value():
            found.add(self.value())
        return [(value, value) for value in sorted(found)]

    def has_output(self) -> bool:
        """Show it always, so that its place is the same."""
        return True

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Leave the rows that have the chosen value."""
        value = self.value()
        if value is None:
            return None
        return queryset.filter(**{str(self.parameter_name): value})


class ChannelFilter(_RecentFilter):
    """Messages of one channel."""

    title = _("channel")
    parameter_name = "channel"


class EndpointFilter(_RecentFilter):
    """Messages for one endpoint."""

    title = _("endpoint")
    parameter_name = "endpoint"


class NewestEndpointFilter(EndpointFilter):
    """Messages for one endpoint, among the newest: no index is worth its writes."""

    title = format_lazy(_("endpoint (of the newest {count})"), count=f"{SEARCHED:,}")

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Leave the newest rows that have the chosen value."""
        found = super().queryset(request, queryset)
        return None if found is None else found.filter(_is_newest(found))


class ReasonFilter(admin.SimpleListFilter):
    """Dead letters that were given up for one reason."""

    title = _("reason")
    parameter_name = "reason__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [(value, reason_text(value)) for value in Reason.values]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Leave the letters of the chosen reason."""
        value = self.value()
        return None if value is None else queryset.filter(reason=value)


def _is_newest(rows: QuerySet[Any]) -> Q:
    """Return the condition of the newest rows of a table."""
    keys = rows.model._default_manager.using(rows.db).values_list("pk", flat=True)
    last = list(keys.order_by("-pk")[SEARCHED : SEARCHED + 1])
    return Q(pk__gt=last[0]) if last else Q()


class NewestOutcomeFilter(admin.SimpleListFilter):
    """Entries of the journal with one outcome, among the newest for the same reason."""

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
        """Leave the newest entries with the chosen outcome."""
        if self.value() not in Outcome.values:
            return None
        return queryset.filter(_is_newest(queryset), outcome=self.value())


class _ChannelsFilter(admin.SimpleListFilter):
    """Filters by what an index has after the channel: so all channels are named."""

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        """Leave the rows of the chosen condition."""
        condition = self.condition()
        if condition is None:
            return None
        channels = tuple(kept_channels(queryset.db))
        return queryset.filter(condition, channel__in=channels)

    def condition(self) -> Q | None:
        """Return what was chosen, None for everything."""
        raise NotImplementedError


class StateFilter(_ChannelsFilter):
    """Messages whose rows have a state."""

    title = _("state")
    parameter_name = "state__exact"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [(str(value), label) for value, label in State.choices]

    def condition(self) -> Q | None:
        """Return what was chosen, None for everything."""
        chosen = self.value() or ""
        known = {str(state.value): state for state in State}
        return Q(state=known[chosen]) if chosen in known else None


class StandingFilter(_ChannelsFilter):
    """Messages as the figures of channels count them, whatever their rows say."""

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
        """Return what was chosen, None for everything."""
        now = timezone.now()
        conditions = {
            "pending": is_pending(now),
            "delayed": is_delayed(now),
            "parked": Q(state=State.PARKED),
        }
        return conditions.get(self.value() or "")


class KeptMessageAdmin(
    OfferedLookupsMixin, ChosenDatabaseMixin, CorrelationMixin, _ModelAdmin
):
    """What the tables of messages have in common: they are looked at, not edited."""

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-pk",)
    sortable_by = ()
    search_fields = ("message_id",)
    search_help_text = _(
        "A message id, a correlation id, an ordering key, or the name of a message or "
        "an endpoint; each whole."
    )
    change_list_template = "admin/django_cqrs_outbox/change_list.html"

    class Media:
        """What the pages need beside the admin's own."""

        css: ClassVar[dict[str, tuple[str, ...]]] = {
            "all": ("django_cqrs_outbox/desk.css",)
        }

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: messages are sent by a bus."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: a message is what was sent."""
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows, without what lists do not show."""
        wide = [
            name
            for name in ("payload", "headers", "traceback")
            if any(field.name == name for field in self.model._meta.fields)
        ]
        return super().get_queryset(request).defer(*wide)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for the whole of an id, a key or a name."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            value = UUID(term)
        except ValueError:
            named = Q(name=term) | Q(endpoint=term)
            keyed = Q(ordering_key=term) & ~self._hide_key(queryset, term)
            wanted = keyed | self._are_searched(queryset) & named
        else:
            wanted = Q(message_id=value) | Q(correlation_id=value)
        return queryset.filter(wanted), False

    def _hide_key(self, rows: QuerySet[Any], key: str) -> Q:
        """
        Return the condition of rows of a key that must not find them.

        A key that the page masks would be confirmed by a search that finds it.
        """
        hidden = Q(pk__in=())
        named = ("endpoint", "name", "version")
        having = rows.filter(ordering_key=key)
        for values in having.order_by().values(*named).distinct():
            newest = having.filter(**values).order_by("-pk").defer(None)[:SHOWN]
            if any(shown(row).key_of(row) != key for row in newest):
                hidden |= Q(**values)
        return hidden

    def _are_searched(self, rows: QuerySet[Any]) -> Q:
        """Return the condition of the rows that are searched by name."""
        return Q()

    # What is shown ------------------------------------------------------------------

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Return the list, with what of its rows may be seen."""
        changes = super().get_changelist_instance(request)
        rows: Any = changes.result_list
        seen = shown_in_list(rows, using=rows.db)
        for each in rows:
            each._shown = seen[each.pk]
        return changes

    def _shown(self, obj: Any) -> Shown:
        if not hasattr(obj, "_shown"):
            obj._shown = shown(obj)
        found: Shown = obj._shown
        return found

    @admin.display(description=_("payload"))
    def payload_text(self, obj: Any) -> str:
        """Return the payload as JSON, without what is sensitive; or why it is not."""
        seen = self._shown(obj)
        if seen.reason:
            return f"{UNSEEN} {seen.reason}"
        text = _as_text(seen.pretty)
        if MASK not in seen.pretty:
            return text
        return format_html('{}<p class="help">{}</p>', text, MASKED)

    @admin.display(description=_("headers"))
    def headers_text(self, obj: Any) -> str:
        """Return the headers as JSON."""
        return _as_text(self._shown(obj).headers_of(obj))

    @admin.display(description=_("ordering key"))
    def key_text(self, obj: Any) -> str:
        """Return the ordering key, without what is sensitive."""
        return self._shown(obj).key_of(obj) or "-"

    @admin.display(description=_("subject"))
    def subject_text(self, obj: Any) -> str:
        """Return the object that it is for, without what is sensitive."""
        return self._shown(obj).subject_of(obj) or "-"

    # Deletion -----------------------------------------------------------------------

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Return what is to be deleted; nothing hangs on a message."""
        name = str(self.model._meta.verbose_name_plural)
        is_query = isinstance(objs, QuerySet)
        count = objs.count() if is_query else len(objs)
        named = [str(each) for each in objs[:SHOWN]]
        lacking = set() if self.has_delete_permission(request) else {name}
        return named, {name: count}, lacking, []

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Delete one; what waited behind it goes on."""
        rows = self._rows(request)
        discard(rows.filter(pk=obj.pk), using=rows.db)

    @admin.action(
        permissions=["delete"],
        description=_("Delete selected %(verbose_name_plural)s"),
    )
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        """Delete the chosen ones, once that is confirmed."""
        if not self._is_confirmed(request):
            question = gettext("Delete these for ever? Nobody will handle them.")
            return self._ask(request, queryset, "delete_selected", question)
        count = self._in_batches(request, queryset, self._delete_batch)
        text = ngettext("Deleted %(count)d.", "Deleted %(count)d.", count)
        self.message_user(request, text % {"count": count}, messages.SUCCESS)
        return None

    def _delete_batch(self, request: HttpRequest, batch: list[Any], using: str) -> int:
        rows = self._rows(request)
        # Whom nobody else has deleted or handled in the meantime.
        kept = rows.select_for_update() if _locks(using) else rows
        found = list(kept.filter(pk__in=[each.pk for each in batch]))
        self._log(request, found, DELETION, "")
        return discard(rows.filter(pk__in=[each.pk for each in found]), using=using)

    # Confirmation and audit ---------------------------------------------------------

    def _is_confirmed(self, request: HttpRequest) -> bool:
        return request.method == "POST" and request.POST.get("post") == "yes"

    def _ask(
        self,
        request: HttpRequest,
        chosen: QuerySet[Any],
        action: str,
        question: str,
    ) -> HttpResponse:
        """Return the page that asks whether to go on."""
        is_all = request.POST.get("select_across") == "1"
        keys = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        total = chosen.order_by().values("pk")[: LISTED + 1].count()
        shown = list(chosen[:SHOWN])
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Are you sure?"),
            "opts": self.opts,
            "question": question,
            "action": action,
            # One stands for all: their filter is in the address.
            "keys": keys[:1] if is_all else keys,
            "select_across": "1" if is_all else "0",
            "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "total": min(total, LISTED),
            "is_bounded": total > LISTED,
            "shown": shown,
            "more": total - len(shown),
            "database": database_of(request, self.model),
        }
        return self._page(request, "confirmation.html", context)

    def _page(
        self, request: HttpRequest, template: str, context: dict[str, Any]
    ) -> HttpResponse:
        site: Any = request
        site.current_app = self.admin_site.name
        return TemplateResponse(
            request, f"admin/django_cqrs_outbox/{template}", context
        )

    def _in_batches(
        self,
        request: HttpRequest,
        chosen: QuerySet[Any],
        handle: Callable[[HttpRequest, list[Any], str], int],
    ) -> int:
        """Handle the chosen in order of sending, each batch in one transaction."""
        using, count = self._rows(request).db, 0

        def handle_batch(keys: list[int]) -> int:
            batch = list(self._rows(request).filter(pk__in=keys).order_by("sequence"))
            return handle(request, batch, using)

        for keys in _keys(chosen.using(using)):
            count += giving_way(partial(handle_batch, keys), using=using)
        return count

    def _rows(self, request: HttpRequest) -> QuerySet[Any]:
        """Return all rows, whole, of the database that is written to."""
        asked = database_of(request, self.model)
        using = asked or router.db_for_write(self.model)
        rows: QuerySet[Any] = self.model._default_manager.using(using)
        return rows

    def _log(
        self, request: HttpRequest, rows: list[Any], flag: int, message: str
    ) -> None:
        """Write who did it into the history of each."""
        user: Any = request.user
        chosen: Any = rows
        if rows:
            LogEntry.objects.log_actions(
                user_id=user.pk,
                queryset=chosen,
                action_flag=flag,
                change_message=message,
            )


def _keys(chosen: QuerySet[Any]) -> Iterator[list[int]]:
    """
    Yield the ids of the chosen, in order of sending, and each once.

    What is given up again while this runs is a row of its own, and is left alone.
    """
    last = chosen.order_by().aggregate(last=Max("pk"))["last"]
    rows = chosen.filter(pk__lte=last).order_by("sequence", "pk")
    keys = list(rows.values_list("pk", flat=True)) if last is not None else []
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def _as_text(text: str) -> str:
    """Return text as it stands, spaces and lines included."""
    if len(text) > LONGEST:
        more = gettext("… and %(count)d more characters")
        text = f"{text[:LONGEST]}\n{more % {'count': len(text) - LONGEST}}"
    # What is wider or higher than the page is scrolled, by the keyboard too.
    return format_html('<pre class="cqrs-text" tabindex="0">{}</pre>', text or "-")


def _locks(using: str) -> bool:
    return connections[using].features.has_select_for_update


@admin.register(OutboxMessage)
class OutboxMessageAdmin(KeptMessageAdmin):
    """What waits: a handled message has no row any more."""

    list_display = (
        "id",
        "channel",
        "endpoint",
        "name",
        "state",
        "attempts",
        "sent_at",
        "available_at",
        "error_text",
        "key_text",
    )
    list_filter = (
        DatabaseFilter,
        ChannelFilter,
        StandingFilter,
        StateFilter,
        NewestEndpointFilter,
    )
    search_help_text = format_lazy(
        _(
            "A message id, a correlation id, an ordering key, or the name of a message "
            "or an endpoint; each whole. Names are looked for among the newest {count} "
            "messages."
        ),
        count=f"{SEARCHED:,}",
    )
    actions = ("delete_selected",)
    readonly_fields = ("payload_text", "headers_text", "key_text", "subject_text")
    fieldsets = (
        (None, {"fields": ("channel", "endpoint", "name", "version")}),
        (_("Message"), {"fields": ("payload_text", "headers_text")}),
        (
            _("State"),
            {
                "fields": (
                    "state",
                    "attempts",
                    "available_at",
                    "expires_at",
                    "owner",
                    "lease_expires_at",
                    "last_error",
                )
            },
        ),
        (
            _("Identity"),
            {
                "fields": (
                    "message_id",
                    "correlation_id",
                    "causation_id",
                    "sent_at",
                    "priority",
                    "key_text",
                    "subject_text",
                )
            },
        ),
    )

    @admin.display(description=_("last error"))
    def error_text(self, obj: OutboxMessage) -> str:
        """Return how the last attempt failed, where the message is tried again."""
        text = obj.last_error or "-"
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    def _are_searched(self, rows: QuerySet[Any]) -> Q:
        """Return the condition of the rows that are searched by name."""
        return _is_newest(rows)

    def get_urls(self) -> list[URLPattern]:
        """Add the page of channels, and the timelines."""
        view = self.admin_site.admin_view(self.channels_view)
        own = path("channels/", view, name=f"{self.opts.app_label}_channels")
        return [own, *urls_of(self), *super().get_urls()]

    def channels_view(self, request: HttpRequest) -> HttpResponse:
        """Show the figures of all channels."""
        messages = self._list_of(request, OutboxMessage)
        letters = self._list_of(request, DeadLetter)
        if not messages and not letters:
            raise PermissionDenied
        asked = database_of(request, OutboxMessage)
        using = asked or router.db_for_read(OutboxMessage)
        figures = statistics_of(using, at_most=LISTED)
        rows = glance(
            figures, messages=messages, letters=letters, at_most=LISTED, database=asked
        )
        labels = [each.label for each in rows[0].figures] if rows else []
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Channels at a glance"),
            "opts": self.opts,
            "media": self.media,
            "now": timezone.localtime(),
            "labels": labels,
            "width": len(labels) + 1,
            "databases": databases_of(OutboxMessage),
            "using": using,
            "rows": rows,
            "idle_channels": idle_channels(figures, using) if messages else [],
        }
        return self._page(request, "channels.html", context)

    def _list_of(self, request: HttpRequest, model: type[Model]) -> str:
        """Return the address of a list, empty for who must not see it."""
        if not self.admin_site.is_registered(model):
            return ""
        if not self.admin_site.get_model_admin(model).has_view_permission(request):
            return ""
        name = f"{model._meta.app_label}_{model._meta.model_name}_changelist"
        return reverse(f"admin:{name}", current_app=self.admin_site.name)


@admin.register(DeadLetter)
class DeadLetterAdmin(KeptMessageAdmin):
    """What failed for good, to be replayed or deleted."""

    list_display = (
        "id",
        "failed_at",
        "first_line",
        "reason_word",
        "endpoint",
        "name",
        "channel",
        "attempts",
        "key_text",
    )
    list_filter = (DatabaseFilter, ChannelFilter, ReasonFilter, EndpointFilter)
    actions = ("replay_selected", "delete_selected")
    change_form_template = "admin/django_cqrs_outbox/deadletter/change_form.html"
    readonly_fields = (
        *("payload_text", "headers_text", "key_text", "subject_text"),
        *("error_text", "traceback_text", "why"),
    )
    fieldsets = (
        (None, {"fields": ("channel", "endpoint", "name", "version")}),
        (
            _("Failure"),
            {
                "fields": (
                    "why",
                    "failed_at",
                    "attempts",
                    "exception",
                    "error_text",
                    "traceback_text",
                )
            },
        ),
        (_("Message"), {"fields": ("payload_text", "headers_text")}),
        (
            _("Identity"),
            {
                "fields": (
                    "message_id",
                    "correlation_id",
                    "causation_id",
                    "sent_at",
                    "priority",
                    "expires_at",
                    "key_text",
                    "subject_text",
                )
            },
        ),
    )

    @admin.display(description=_("reason"))
    def reason_word(self, obj: DeadLetter) -> str:
        """Return the reason as the commands name it; the filter says what it means."""
        return obj.reason

    @admin.display(description=_("reason"))
    def why(self, obj: DeadLetter) -> str:
        """Return the reason as the commands name it, and what it means."""
        return reason_text(obj.reason)

    @admin.display(description=_("error"))
    def first_line(self, obj: DeadLetter) -> str:
        """Return how the error begins."""
        error = self._shown(obj).error_of(obj)
        lines = (error or obj.exception).splitlines() or [""]
        return lines[0] if len(lines[0]) <= SHOWN else f"{lines[0][:SHOWN]}…"

    @admin.display(description=_("error"))
    def error_text(self, obj: DeadLetter) -> str:
        """Return what the exception says, without what is sensitive."""
        return self._shown(obj).error_of(obj) or "-"

    @admin.display(description=_("traceback"))
    def traceback_text(self, obj: DeadLetter) -> str:
        """Return the traceback, without what is sensitive."""
        return _as_text(self._shown(obj).traceback_of(obj))

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody may put dead letters back."""
        return self._may(request, "replay_deadletter")

    def has_edit_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody may put them back with another payload."""
        return self._may(request, "edit_deadletter")

    def _may(self, request: HttpRequest, codename: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.{codename}"))

    @admin.action(permissions=["replay"], description=_("Replay selected dead letters"))
    def replay_selected(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter]
    ) -> HttpResponse | None:
        """Put the chosen ones back into their channels, once that is confirmed."""
        if not self._is_confirmed(request):
            question = gettext(
                "Put these back into their channels? What a handler did outside the "
                "database before it failed, it does again."
            )
            return self._ask(request, queryset, "replay_selected", question)
        count = self._in_batches(request, queryset, self._replay_batch)
        self._tell_replayed(request, count)
        return None

    def _replay_batch(
        self, request: HttpRequest, batch: list[DeadLetter], using: str
    ) -> int:
        replayed = put_back(batch, using=using)
        self._log(request, replayed, CHANGE, gettext("Replayed."))
        return len(replayed)

    def _tell_replayed(self, request: HttpRequest, count: int) -> None:
        text = ngettext("Replayed %(count)d.", "Replayed %(count)d.", count)
        level = messages.SUCCESS if count else messages.WARNING
        self.message_user(request, text % {"count": count}, level)

    def get_urls(self) -> list[URLPattern]:
        """Add the pages that replay one, as it is or edited."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [
            path(
                f"<path:object_id>/{action}/",
                self.admin_site.admin_view(view),
                name=f"{name}_{action}",
            )
            for action, view in (("replay", self.replay_view), ("edit", self.edit_view))
        ]
        return [*own, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one, with a way to replay it where that is allowed."""
        may = {
            "has_replay_permission": self.has_replay_permission(request),
            "has_edit_permission": self.has_edit_permission(request),
        }
        context = {**may, **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def replay_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask whether to replay one, and do it when that is posted."""
        letter = self._asked_for(request, object_id, self.has_replay_permission)
        if letter is None:
            return self._tell_gone(request)
        chosen = self._rows(request).filter(pk=letter.pk)
        answer = self.replay_selected(request, chosen)
        return answer or HttpResponseRedirect(self._changelist(request))

    def edit_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Let the payload of one be edited, and put it back when that is posted."""
        letter = self._asked_for(request, object_id, self.has_edit_permission)
        if letter is None:
            return self._tell_gone(request)
        # As it is now, and whole.
        letter = self._rows(request).filter(pk=letter.pk).first()
        if letter is None:
            return self._tell_gone(request)
        errors: list[FieldError] = []
        refusal, text, note = "", "", ""
        try:
            draft = Draft(letter)
            text, note = draft.text, draft.note
            if request.method == "POST":
                text = request.POST.get("payload", "").replace("\r\n", "\n")
                mended = draft.mended(text)
                return self._replay_mended(request, letter, mended)
        except CannotMend as error:
            refusal = str(error)
        except MessageConversionError as error:
            errors = error.errors
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Edit and replay"),
            "subtitle": str(letter),
            "opts": self.opts,
            "media": self.media,
            "original": letter,
            "error": self._shown(letter).error_of(letter) or letter.exception,
            "refusal": refusal,
            "errors": errors,
            "text": text,
            "note": note,
            "mask": MASK,
            "preserved_filters": self.get_preserved_filters(request),
        }
        return self._page(request, "deadletter/edit.html", context)

    def _replay_mended(
        self, request: HttpRequest, letter: DeadLetter, mended: Mended
    ) -> HttpResponse:
        using = self._rows(request).db
        paths = ", ".join(mended.paths)

        def replay() -> bool:
            is_done = replay_mended(letter, mended, using=using)
            if is_done:
                text = gettext("Edited and replayed: %(paths)s.") % {"paths": paths}
                self._log(request, [letter], CHANGE, text)
            return is_done

        if not giving_way(replay, using=using):
            return self._tell_gone(request)
        text = gettext("Edited and replayed 1.")
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(self._changelist(request))

    def _asked_for(
        self,
        request: HttpRequest,
        object_id: str,
        may: Callable[[HttpRequest], bool],
    ) -> DeadLetter | None:
        """
        Return a dead letter, None where it is gone.

        Raises:
            PermissionDenied: whoever asks must not do this, or must not see it.

        """
        if not may(request) or not self.has_view_permission(request):
            raise PermissionDenied
        letter: DeadLetter | None = self.get_object(request, object_id)
        return letter

    def _tell_gone(self, request: HttpRequest) -> HttpResponse:
        text = gettext(
            "There is no such dead letter any more: somebody has replayed or deleted "
            "it. Nothing was done."
        )
        self.message_user(request, text, messages.WARNING)
        return HttpResponseRedirect(self._changelist(request))

    def _changelist(self, request: HttpRequest) -> str:
        address = reverse(
            f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist",
            current_app=self.admin_site.name,
        )
        return with_database(address, database_of(request, self.model))


@admin.register(JournalEntry)
class JournalEntryAdmin(
    OfferedLookupsMixin, ChosenDatabaseMixin, CorrelationMixin, _ModelAdmin
):
    """What came of messages: the way to the timeline of one that has no row."""

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0
    ordering = ("-pk",)
    sortable_by = ()
    list_display = ("at", "name", "endpoint", "outcome", "attempts", "error", "story")
    list_filter = (DatabaseFilter, NewestOutcomeFilter, NewestEndpointFilter)
    search_fields = ("correlation_id",)
    search_help_text = _("A correlation id, whole.")
    fields = (
        *("at", "kind", "name", "endpoint", "channel", "outcome", "attempts"),
        *("duration", "exception", "error"),
        *("message_id", "correlation_id", "causation_id"),
    )
    change_list_template = "admin/django_cqrs_outbox/change_list.html"

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: an entry is written when something is handled."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: it says what was."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: Model | None = None
    ) -> bool:
        """Refuse: it goes when its time is over."""
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for the whole of an id."""
        if not search_term.strip():
            return queryset, False
        try:
            wanted = UUID(search_term.strip())
        except ValueError:
            return queryset.none(), False
        return queryset.filter(correlation_id=wanted), False

    @admin.display(description=_("timeline"))
    def story(self, obj: JournalEntry) -> str:
        """Return a link to what belongs to it."""
        # Who sees the list may see the page.
        address = reverse(
            f"admin:{BY_ID}",
            args=(obj.correlation_id,),
            current_app=self.admin_site.name,
        )
        label = gettext("Timeline of %(name)s") % {"name": obj}
        return format_html(
            '<a href="{}" aria-label="{}">{}</a>', address, label, gettext("Timeline")
        )
