"""The one table of the document store."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_cqrs.documents.redaction import key_of
from django_cqrs.models import NameField


class Document(models.Model):
    """An object as JSON, under a key that is unique in its collection."""

    collection = NameField(_("collection"), max_length=255)
    key = NameField(_("key"), max_length=255)
    content = models.JSONField(_("content"), null=True)  # None is a value too
    # The version of the content's shape.
    shape = models.PositiveSmallIntegerField(_("version of the shape"), default=1)
    # Incremented by every save.
    version = models.PositiveBigIntegerField(_("version"), default=0)
    created_at = models.DateTimeField(_("created at"))
    updated_at = models.DateTimeField(_("updated at"))

    objects: ClassVar[models.Manager[Document]] = models.Manager()

    class Meta:
        """Unique by a plain constraint, which every database enforces."""

        verbose_name = _("document")
        verbose_name_plural = _("documents")
        default_permissions = ("view", "delete")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["collection", "key"], name="cqrs_document_once"
            ),
        ]

    def __str__(self) -> str:
        """Return its key, without sensitive data, and its collection."""
        return f"{key_of(self)} in {self.collection}"
