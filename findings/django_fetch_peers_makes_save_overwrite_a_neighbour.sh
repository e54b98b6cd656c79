#!/usr/bin/env bash
# Django 6.1.3: with FETCH_PEERS, reading a deferred field of one row changes what save()
# of another row writes. Expected: save() of an instance with a deferred field leaves that
# column alone, as it does with the default mode, as long as nobody read or set the field
# of that instance. Seen on CPython 3.13: the neighbour's read loads the field for all rows
# of the query set, so save() writes the old value back, and an UPDATE in between is lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Django 6.1 needs Python 3.12; a version manager's stub may be on PATH and run nothing.
for python in "${PYTHON:-python3}" python3.{12..15} "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python; do
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then break; fi
done
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq django==6.1.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import django
from django.conf import settings

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": database})
django.setup()

from django.db import connection, models
from django.db.models import FETCH_ONE, FETCH_PEERS


class Account(models.Model):
    owner = models.CharField(max_length=20)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "bank"


with connection.schema_editor() as editor:
    editor.create_model(Account)
for owner in ("first", "second"):
    Account.objects.create(owner=owner)


def balance_after(mode):
    Account.objects.update(balance=0)
    first, second = Account.objects.order_by("pk").defer("balance").fetch_mode(mode)
    first.balance  # a read, of another row
    Account.objects.filter(pk=second.pk).update(balance=100)
    second.owner = "renamed"
    second.save()
    return Account.objects.get(pk=second.pk).balance


one, peers = balance_after(FETCH_ONE), balance_after(FETCH_PEERS)
print(f"balance after the save: {one} with FETCH_ONE, {peers} with FETCH_PEERS")
sys.exit((one, peers) != (100, 0))
PYTHON
