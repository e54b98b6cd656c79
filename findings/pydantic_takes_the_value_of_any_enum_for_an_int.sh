#!/usr/bin/env bash
# pydantic 2.14.4: a lax int takes the value of any Enum member, also one that is text.
# Expected: the error int_type or int_parsing, as for the text itself, or an int. Seen on
# CPython 3.11 and 3.13: the value is returned as it is, "a", so that an AfterValidator
# that is annotated with int gets a str.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq pydantic==2.14.4
"$folder/venv/bin/python" - <<'PYTHON'
import enum
import sys

from pydantic import TypeAdapter


class Size(enum.Enum):
    LARGE = "a"


found = TypeAdapter(int).validate_python(Size.LARGE)
print(f"An int is read from {Size.LARGE!r}: {found!r}")
sys.exit(found != "a")
PYTHON
