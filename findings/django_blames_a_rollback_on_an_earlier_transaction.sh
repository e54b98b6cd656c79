#!/usr/bin/env bash
# Django 5.2.1: the cause of a TransactionManagementError may be an error of another
# transaction. Expected: "You can't execute queries until the end of the 'atomic' block"
# is raised from the error that broke this block, or from nothing where there was none,
# after set_rollback(True). Seen on CPython 3.11: connection.rollback_exc is set by the
# first error of the connection and never cleared, so the cause is what a finished
# transaction failed with, however long ago; it also keeps the frames of its traceback.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq django==5.2.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import django
from django.conf import settings

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": database})
django.setup()

from django.db import IntegrityError, connection, models, transaction


class Account(models.Model):
    owner = models.CharField(max_length=20, unique=True)

    class Meta:
        app_label = "bank"


with connection.schema_editor() as editor:
    editor.create_model(Account)
Account.objects.create(owner="first")
try:
    with transaction.atomic():
        Account.objects.create(owner="first")
except IntegrityError:
    pass
with transaction.atomic():
    Account.objects.create(owner="second")  # another transaction, which succeeds
cause = None
try:
    with transaction.atomic():
        transaction.set_rollback(True)
        Account.objects.count()
except transaction.TransactionManagementError as error:
    cause = error.__cause__
print(f"the cause of the third transaction's error: {cause!r}")
sys.exit(not isinstance(cause, IntegrityError))
PYTHON
