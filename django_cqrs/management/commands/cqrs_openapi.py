"""``manage.py cqrs_openapi``: write the OpenAPI document of the views of messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_cqrs.openapi import openapi_document


class Command(BaseCommand):
    """Write the OpenAPI document. Does not use the database."""

    help = (
        "Writes the OpenAPI 3.1 document of every CommandView and QueryView in the "
        "URLconf as JSON, to the standard output or to a file."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the document's title and version, and a file."""
        parser.add_argument(
            "--title",
            help="The name of the API (default: the name of the URLconf's package).",
        )
        parser.add_argument(
            "--api-version",
            default="1.0.0",
            metavar="VERSION",
            help="The version of the API (default: %(default)s).",
        )
        parser.add_argument(
            "--urlconf",
            metavar="MODULE",
            help="The dotted path of the URLconf (default: ROOT_URLCONF).",
        )
        parser.add_argument(
            "-o", "--output", metavar="FILE", help="Write to this file."
        )

    def handle(self, **options: Any) -> None:
        """Write the document, or say which views cannot be described."""
        try:
            document = openapi_document(
                title=options["title"],
                version=options["api_version"],
                urlconf=options["urlconf"],
            )
        except (ImproperlyConfigured, ImportError) as error:
            raise CommandError(str(error)) from error
        if not document["paths"]:
            message = "The URLconf has no CommandView and no QueryView."
            self.stderr.write(self.style.WARNING(message))
        text = json.dumps(document, indent=2, ensure_ascii=False)
        if options["output"] is None:
            self.stdout.write(text)
            return
        try:
            Path(options["output"]).write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"Cannot write {options['output']}: {error}") from error
