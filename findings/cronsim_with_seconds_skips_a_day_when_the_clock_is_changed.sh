#!/usr/bin/env bash
# cronsim 2.8: the same time of day means something else with the field of the seconds.
# Expected: "0 30 2 * * *" is "30 2 * * *" at second 0, also in the two nights in which the
# clock of Europe/Berlin is changed. Seen: with five fields the time that the clock skips
# is made up for at 3:00, and the time that comes twice is taken once. With six fields the
# day in March has no time at all, and the one in October has two.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq cronsim==2.8 tzdata==2025.2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

BERLIN = ZoneInfo("Europe/Berlin")
EVENINGS = {"March": datetime(2026, 3, 28, 12), "October": datetime(2026, 10, 24, 12)}


def next_two(expression, begin):
    times = CronSim(expression, begin.replace(tzinfo=BERLIN))
    return [next(times).isoformat() for _ in range(2)]


found = {
    (fields, month): next_two(expression, begin)
    for fields, expression in (("five", "30 2 * * *"), ("six", "0 30 2 * * *"))
    for month, begin in EVENINGS.items()
}
for (fields, month), times in found.items():
    print(f"{month}, {fields} fields: {', '.join(times)}")
sys.exit(
    found
    != {
        ("five", "March"): ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        ("five", "October"): ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ("six", "March"): ["2026-03-30T02:30:00+02:00", "2026-03-31T02:30:00+02:00"],
        ("six", "October"): ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"],
    }
)
PYTHON
