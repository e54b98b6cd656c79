"""The office app in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from common.admin import ReadOnly
from office.models import FullMailbox, Invoice, Letter


@admin.register(Invoice)
class InvoiceAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("reference", "total", "written_at")
    search_fields = ("=reference",)


@admin.register(Letter)
class LetterAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("sent_at", "address", "subject")
    search_fields = ("address", "subject")


@admin.register(FullMailbox)
class FullMailboxAdmin(admin.ModelAdmin):
    list_display = ("address",)
