#!/usr/bin/env bash
# django-stubs 6.1.2 with mypy 2.4.1 and Django 5.2.19: its plugin reads the metadata of
# Annotated[Model, ...] as types. Expected: metadata is ignored, as mypy alone does, and as
# the plugin does for any class that is not a model. Seen: a call there is an invalid
# annotation, and a string is a name that is not defined, so that a parameter of a model's
# class cannot be marked at all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  django-stubs==6.1.2 django-stubs-ext==6.1.2 mypy==2.4.1 django==5.2.19
cd "$folder"
cat >marked.py <<'PYTHON'
from typing import Annotated

from django.db import models


class Mark:
    def __init__(self, *, lock: bool) -> None: ...


class Thing(models.Model):
    class Meta:
        app_label = "things"


def takes_number(number: Annotated[int, Mark(lock=False)]) -> None: ...
def takes_model(thing: Annotated[Thing, Mark(lock=False)]) -> None: ...
def takes_named(thing: Annotated[Thing, "mark"]) -> None: ...
PYTHON
printf 'SECRET_KEY = "-"\nINSTALLED_APPS: list[str] = []\n' >settings.py
printf '[mypy]\nstrict = true\n' >alone.ini
{
  cat alone.ini
  printf 'plugins = mypy_django_plugin.main\n'
  printf '[mypy.plugins.django-stubs]\ndjango_settings_module = settings\n'
} >plugin.ini
export PYTHONPATH=.
mypy() { venv/bin/python -m mypy --no-error-summary --config-file "$1" marked.py || true; }
mypy alone.ini | tee alone.txt
mypy plugin.ini | tee plugin.txt
[ ! -s alone.txt ]
diff plugin.txt - <<'SEEN'
marked.py:16: error: Invalid type comment or annotation  [valid-type]
marked.py:16: note: Cannot use a function call in a type annotation
marked.py:17: error: Name "mark" is not defined  [name-defined]
SEEN
