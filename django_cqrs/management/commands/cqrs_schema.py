"""``manage.py cqrs_schema``: lock the shapes of stored messages, and check them."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tabulate import tabulate

from django_cqrs.buses.registries import registry
from django_cqrs.conversion.json_schemas import json_schemas
from django_cqrs.exceptions import InvalidHandler
from django_cqrs.schema_lock.examination import FindingKind, examine, shown_path
from django_cqrs.schema_lock.files import write
from django_cqrs.schema_lock.scaffolding import NotScaffolded, scaffold
from django_cqrs.schema_lock.sources import StoredClass
from django_cqrs.schema_lock.waiting import stored_payloads
from django_cqrs.tenant_options import ChosenRows, add_database_options, chosen_rows

JSON_VERSION = 1


class Command(BaseCommand):
    """Lock the shapes of stored messages. Only --stored uses the database."""

    help = (
        "Writes messages.lock.json into each app: the shape of every message that "
        "waits in a channel, and of every document. With --check, compares the files "
        "with the code and exits with 1 if they differ."
    )
    # A lock file can be checked where nothing else can.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the apps and what to do with their files."""
        parser.add_argument(
            "labels",
            nargs="*",
            metavar="APP",
            help="Only these apps (default: all of the project, but not packages).",
        )
        action = parser.add_mutually_exclusive_group()
        action.add_argument(
            "--check",
            action="store_true",
            help="Write nothing; exit with 1 if a file differs from the code.",
        )
        action.add_argument(
            "--scaffold",
            metavar="NAME",
            help="Raise the version of this message in its source code, and write the "
            "beginning of its upcaster.",
        )
        action.add_argument(
            "--retire",
            metavar="NAME",
            help="Lock this message anew, or remove it if its class is gone: nothing "
            "of it is stored any longer.",
        )
        action.add_argument(
            "--stored",
            action="store_true",
            help="Count the stored payloads that this code cannot read; exit with 1 "
            "if there are any.",
        )
        action.add_argument(
            "--export",
            choices=["json"],
            help="Print the JSON schemas of the locked classes.",
        )
        add_database_options(
            parser, help="The database of --stored (default: %(default)s)."
        )

    def handle(self, *, labels: list[str], **options: Any) -> None:
        """Do one of it."""
        known = [each.label for each in apps.get_app_configs()]
        for label in labels:
            if label not in known:
                raise _missing("app", label, known)
        if options["stored"]:
            with chosen_rows(options["database"], options["tenant"]) as chosen:
                self._count_stored(chosen)
        elif options["export"]:
            self._export(labels)
        elif options["scaffold"]:
            self._scaffold(options["scaffold"])
        elif options["check"]:
            self._check(labels)
        else:
            self._write(labels, options["retire"])

    def _check(self, labels: list[str]) -> None:
        found = examine(registry, labels)
        for each in found.findings:
            self.stdout.write(str(each))
        if found.texts or found.errors:
            count = len(found.findings)
            noun = "difference" if count == 1 else "differences"
            msg = f"{count} {noun} between the code and its lock files."
            raise CommandError(msg, returncode=1)
        count = len(found.classes)
        noun = "class is" if count == 1 else "classes are"
        self.stdout.write(f"{count} stored {noun} as locked.")

    def _write(self, labels: list[str], retired: str | None) -> None:
        if retired is not None:
            locked = examine(registry, labels).locked
            if retired not in locked:
                raise _missing("locked class", retired, [*locked])
        found = examine(registry, labels, retired=retired)
        for each in found.findings:
            if each.kind is not FindingKind.BEHIND:
                self.stdout.write(str(each))
        if found.errors:
            count = len(found.errors)
            noun = "error" if count == 1 else "errors"
            msg = f"{count} {noun}. Nothing was written."
            raise CommandError(msg, returncode=1)
        for path, text in found.texts.items():
            _write(path, text)
            self.stdout.write(f"Wrote {shown_path(path)}.")
        if not found.texts:
            self.stdout.write("Nothing has changed.")

    def _scaffold(self, name: str) -> None:
        found = examine(registry)
        cls = next((each for each in found.classes if name in each.keys), None)
        keys = [] if cls is None else [key for key in cls.keys if key in found.locked]
        if cls is None or not keys:
            raise _missing("locked class", name, [*found.locked])
        try:
            made = scaffold(cls, found.locked[keys[0]])
        except NotScaffolded as error:
            raise CommandError(str(error)) from error
        _write(made.path, made.text)
        where = shown_path(made.path)
        if made.raised_to is not None:
            self.stdout.write(f"{where}: {cls.key} has version {made.raised_to} now.")
        self.stdout.write(
            f"{where}: write the body of the upcaster from version {made.version}, "
            "then run manage.py cqrs_schema."
        )

    def _count_stored(self, chosen: ChosenRows) -> None:
        from django_cqrs.outbox.management.refusals import clear_errors

        with clear_errors(chosen.using):
            found = stored_payloads(registry, chosen.using, tenant=chosen.tenant)
        if not found.unreadable:
            noun = "payload" if found.total == 1 else "payloads"
            self.stdout.write(f"This code reads all {found.total} stored {noun}.")
            return
        rows = [
            (each.count, each.what, f"{each.name or 'value'} {each.version}", each.why)
            for each in found.unreadable
        ]
        headers = ["Count", "Stored as", "Name and version", "Why"]
        self.stdout.write(tabulate(rows, headers=headers, disable_numparse=True))
        count = sum(each.count for each in found.unreadable)
        msg = f"This code cannot read {count} of {found.total} stored payloads."
        raise CommandError(msg, returncode=1)

    def _export(self, labels: list[str]) -> None:
        found = examine(registry, labels)
        messages = {}
        for each in sorted(found.classes, key=lambda one: one.key):
            try:
                messages[each.key] = _json_schema(each)
            except InvalidHandler as error:
                raise CommandError(str(error)) from error
        document: dict[str, Any] = {"version": JSON_VERSION, "messages": messages}
        self.stdout.write(json.dumps(document, indent=2, ensure_ascii=False))


def _missing(what: str, given: str, known: list[str]) -> CommandError:
    near = difflib.get_close_matches(given, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return CommandError(f"There is no {what} {given!r}.{hint}")


def _write(path: Path, text: str) -> None:
    try:
        write(path, text)
    except OSError as error:
        msg = f"Cannot write {shown_path(path)}: {error}"
        raise CommandError(msg) from error


def _json_schema(cls: StoredClass) -> dict[str, Any]:
    [schema], definitions = json_schemas(
        [(cls.target, "validation")], ref_template="#/$defs/{model}"
    )
    return {
        "version": cls.name.version,
        "aliases": list(cls.name.aliases),
        "schema": {**schema, "$defs": definitions} if definitions else schema,
    }
