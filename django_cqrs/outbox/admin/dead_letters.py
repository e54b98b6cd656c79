"""Dead letters in the admin: view, edit, replay, discard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from django_cqrs.admin_databases import DatabaseFilter, database_of, with_database
from django_cqrs.admin_lists import as_text
from django_cqrs.conversion.masking import MASK
from django_cqrs.exceptions import FieldError, MessageConversionError
from django_cqrs.outbox.admin.filters import ChannelFilter, EndpointFilter, TenantFilter
from django_cqrs.outbox.admin.stored_messages import (
    SHOWN,
    KeptMessageAdmin,
    keys_in_batches,
)
from django_cqrs.outbox.editing import (
    EditedPayload,
    NotEditable,
    PayloadEditor,
    replay_edited,
)
from django_cqrs.outbox.models import DeadLetter, Reason
from django_cqrs.outbox.redaction import reason_text
from django_cqrs.outbox.store.batches import retrying_deadlocks
from django_cqrs.outbox.store.dead_letters import put_back
from django_cqrs.outbox.worker.replays import hand_over

AT_ONCE: Final = 1_000
"""The maximum number replayed in the request itself; a worker replays more."""


class ReasonFilter(admin.SimpleListFilter):
    """Filters dead letters by the reason why they were given up."""

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
        """Return the letters of the chosen reason."""
        value = self.value()
        return None if value is None else queryset.filter(reason=value)


@admin.register(DeadLetter)
class DeadLetterAdmin(KeptMessageAdmin):
    """Messages that failed for good, to be replayed or deleted."""

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
    list_filter = (
        *(DatabaseFilter, TenantFilter),
        *(ChannelFilter, ReasonFilter, EndpointFilter),
    )
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
        """Return the reason in the commands' word; the filter explains it."""
        return obj.reason

    @admin.display(description=_("reason"))
    def why(self, obj: DeadLetter) -> str:
        """Return the reason in the commands' word, with its meaning."""
        return reason_text(obj.reason)

    @admin.display(description=_("error"))
    def first_line(self, obj: DeadLetter) -> str:
        """Return the beginning of the error."""
        error = self._shown(obj).error_of(obj)
        lines = (error or obj.exception).splitlines() or [""]
        return lines[0] if len(lines[0]) <= SHOWN else f"{lines[0][:SHOWN]}…"

    @admin.display(description=_("error"))
    def error_text(self, obj: DeadLetter) -> str:
        """Return the text of the exception, without sensitive data."""
        return self._shown(obj).error_of(obj) or "-"

    @admin.display(description=_("traceback"))
    def traceback_text(self, obj: DeadLetter) -> str:
        """Return the traceback, without sensitive data."""
        return as_text(self._shown(obj).traceback_of(obj))

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may put dead letters back."""
        return self._may(request, "replay_deadletter")

    def has_edit_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may put them back with another payload."""
        return self._may(request, "edit_deadletter")

    def _may(self, request: HttpRequest, codename: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.{codename}"))

    @admin.action(permissions=["replay"], description=_("Replay selected dead letters"))
    def replay_selected(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter]
    ) -> HttpResponse | None:
        """Put the chosen letters back into their channels, after a confirmation."""
        if not self._is_confirmed(request):
            question = gettext(
                "Put these messages back into their channels? Handlers repeat any "
                "work they did outside the database before they failed."
            )
            return self._ask(request, queryset, "replay_selected", question)
        using = self._rows(request).db
        if (
            queryset.using(using).order_by().values("pk")[: AT_ONCE + 1].count()
            > AT_ONCE
        ):
            self._hand_over(request, queryset.using(using))
            return None
        count = self._in_batches(request, queryset, self._replay_batch)
        self._tell_replayed(request, count)
        return None

    def _hand_over(self, request: HttpRequest, chosen: QuerySet[DeadLetter]) -> None:
        """Hand over letters to a worker that are too many for one request."""
        batches = list(keys_in_batches(chosen))
        hand_over(batches, user=request.user, using=chosen.db)
        text = gettext(
            "%(count)d dead letters are handed to the worker, which replays them. The "
            "page of channels shows how many are left."
        )
        count = sum(map(len, batches))
        self.message_user(request, text % {"count": count}, messages.SUCCESS)

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
        """Add the pages that replay a letter, unchanged or edited."""
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
        """Show a letter, with a way to replay it if that is allowed."""
        may = {
            "has_replay_permission": self.has_replay_permission(request),
            "has_edit_permission": self.has_edit_permission(request),
        }
        context = {**may, **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def replay_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask whether to replay a letter, and do it on POST."""
        letter = self._asked_for(request, object_id, self.has_replay_permission)
        if letter is None:
            return self._tell_gone(request)
        chosen = self._rows(request).filter(pk=letter.pk)
        answer = self.replay_selected(request, chosen)
        return answer or HttpResponseRedirect(self._changelist(request))

    def edit_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show a letter's payload in a form, and put it back on POST."""
        letter = self._asked_for(request, object_id, self.has_edit_permission)
        if letter is None:
            return self._tell_gone(request)
        # Its present state, with all columns.
        letter = self._rows(request).filter(pk=letter.pk).first()
        if letter is None:
            return self._tell_gone(request)
        errors: list[FieldError] = []
        refusal, text, note = "", "", ""
        try:
            editor = PayloadEditor(letter)
            text, note = editor.text, editor.note
            if request.method == "POST":
                text = request.POST.get("payload", "").replace("\r\n", "\n")
                edited = editor.edited(text)
                return self._replay_edited(request, letter, edited)
        except NotEditable as error:
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

    def _replay_edited(
        self, request: HttpRequest, letter: DeadLetter, edited: EditedPayload
    ) -> HttpResponse:
        using = self._rows(request).db
        paths = ", ".join(edited.paths)

        def replay() -> bool:
            is_done = replay_edited(letter, edited, using=using)
            if is_done:
                text = gettext("Edited and replayed: %(paths)s.") % {"paths": paths}
                self._log(request, [letter], CHANGE, text)
            return is_done

        if not retrying_deadlocks(replay, using=using):
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
        Return a dead letter, None if it is gone.

        Raises:
            PermissionDenied: the user must not do this, or must not see it.

        """
        if not may(request) or not self.has_view_permission(request):
            raise PermissionDenied
        letter: DeadLetter | None = self.get_object(request, object_id)
        return letter

    def _tell_gone(self, request: HttpRequest) -> HttpResponse:
        text = gettext(
            "This dead letter no longer exists: somebody has replayed or deleted it. "
            "Nothing was done."
        )
        self.message_user(request, text, messages.WARNING)
        return HttpResponseRedirect(self._changelist(request))

    def _changelist(self, request: HttpRequest) -> str:
        address = reverse(
            f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist",
            current_app=self.admin_site.name,
        )
        return with_database(address, database_of(request, self.model))
