#!/usr/bin/env bash
# pydantic 2.14.4: a datetime written as JSON loses the seconds of its UTC offset.
# Expected: ISO 8601 in Python's form, +00:19:32, or an error, since zones of before
# about 1972 have such offsets. Seen on CPython 3.11: "+00:19" is written without a
# warning, and what is read back is another moment: 32 seconds later for Amsterdam in
# 1930, 30 seconds earlier for Monrovia in 1971.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq pydantic==2.14.4 tzdata==2025.2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from datetime import datetime
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter

adapter = TypeAdapter(datetime)
shifts = []
for zone, year in (("Europe/Amsterdam", 1930), ("Africa/Monrovia", 1971)):
    moment = datetime(year, 1, 1, tzinfo=ZoneInfo(zone))
    text = adapter.dump_json(moment)
    shift = (adapter.validate_json(text) - moment).total_seconds()
    print(f"{moment.isoformat()} is written {text.decode()}: shifted by {shift} s")
    shifts.append(shift)
sys.exit(shifts != [32.0, -30.0])
PYTHON
