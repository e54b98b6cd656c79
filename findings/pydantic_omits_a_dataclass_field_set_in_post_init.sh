#!/usr/bin/env bash
# pydantic 2.14.4: a standard dataclass is written without a field that __post_init__ sets.
# Expected: dump_json() writes what dataclasses.asdict() gives, or the schema refuses the
# field. Seen on CPython 3.11: field(init=False) is left out silently; the same field with
# a default, which makes no difference to what it holds, is written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq pydantic==2.14.4
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter


@dataclass
class Bare:
    net: int
    gross: int = field(init=False)

    def __post_init__(self):
        self.gross = self.net * 2


@dataclass
class WithDefault:
    net: int
    gross: int = field(init=False, default=0)

    def __post_init__(self):
        self.gross = self.net * 2


bare, defaulted = (TypeAdapter(each).dump_json(each(1)) for each in (Bare, WithDefault))
print(f"asdict {asdict(Bare(1))}; written {bare.decode()}, with a default {defaulted.decode()}")
sys.exit((bare, defaulted) != (b'{"net":1}', b'{"net":1,"gross":2}'))
PYTHON
