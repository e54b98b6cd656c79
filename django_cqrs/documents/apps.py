"""The app config of the document store."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DocumentsConfig(AppConfig):
    """Aggregates, sagas and values stored as JSON."""

    name = "django_cqrs.documents"
    label = "django_cqrs_documents"
    verbose_name = _("Documents")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models, and register the storage before routes are compiled."""
        super().import_models()
        from django_cqrs.documents.document_storage import document_storage
        from django_cqrs.modelling.storages import register_storage

        register_storage(document_storage)
