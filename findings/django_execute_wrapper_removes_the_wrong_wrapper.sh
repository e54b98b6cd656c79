#!/usr/bin/env bash
# Django 5.2.1 and 6.1.3: the end of connection.execute_wrapper() removes the last wrapper
# of the list, not its own. Expected: a wrapper that is appended for good while the block
# is open (by a package that sets itself up at the first query) outlives the block. Seen
# on CPython 3.13: it is taken away, and the wrapper of the block stays for ever.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Django 6.1 needs Python 3.12; a version manager's stub may be on PATH and run nothing.
for python in "${PYTHON:-python3}" python3.{12..15} "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python; do
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then break; fi
done
"$python" -m venv "$folder/venv"
for version in 5.2.1 6.1.3; do
  "$folder/venv/bin/python" -m pip install -qq "django==$version"
  "$folder/venv/bin/python" - <<'PYTHON'
import sys

import django
from django.conf import settings

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": database})
django.setup()

from django.db import connection


def of_the_block(execute, *args):
    return execute(*args)


def for_good(execute, *args):
    return execute(*args)


with connection.execute_wrapper(of_the_block):
    connection.execute_wrappers.append(for_good)
left = [each.__name__ for each in connection.execute_wrappers]
print(f"Django {django.__version__}: after the block there is {left}")
sys.exit(left != ["of_the_block"])
PYTHON
done
