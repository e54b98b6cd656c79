#!/usr/bin/env bash
# django-tasks 0.12.0 with Django 5.2.19: neither a task nor the result of enqueue() can be
# pickled. Expected: both can, so that a result is put in a cache, or sent to a process,
# until it is asked for; with django.tasks of Django 6.1, whose backport this is, they can.
# Seen: PicklingError, "it's not the same object as", since the task holds the function
# whose name now leads to the task. A deep copy of the task works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq django-tasks==0.12.0 django==5.2.19
cd "$folder"
cat >jobs.py <<'PYTHON'
from django_tasks import task


@task()
def add(first: int, second: int) -> int:
    return first + second
PYTHON
venv/bin/python - <<'PYTHON'
import copy
import pickle
import sys

import django
from django.conf import settings

sys.path.insert(0, "")
backend = "django_tasks.backends.immediate.ImmediateBackend"
settings.configure(
    SECRET_KEY="-", INSTALLED_APPS=["django_tasks"], TASKS={"default": {"BACKEND": backend}}
)
django.setup()

from jobs import add

refused = []
for name, value in (("task", add), ("result", add.enqueue(1, 2))):
    try:
        pickle.dumps(value)
    except pickle.PicklingError as error:
        refused.append(name)
        print(f"{name}: PicklingError, {'not the same object' in str(error)}")
print(f"a deep copy is equal: {copy.deepcopy(add) == add}")
sys.exit(refused != ["task", "result"])
PYTHON
