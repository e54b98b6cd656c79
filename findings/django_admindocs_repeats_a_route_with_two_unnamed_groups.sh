#!/usr/bin/env bash
# Django 5.2.19, and the same in 6.1.3: the page of views in admindocs shows a route with
# two or more unnamed groups wrongly. Expected: each group becomes <var>, as one does.
# Seen: from the second group on, all of the pattern before the group is repeated behind
# the part already shown, so that the archive of a month is shown as two routes in a
# row. Tools that take their routes from simplify_regex() inherit this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq django==5.2.19 docutils==0.22.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from django.contrib.admindocs.views import simplify_regex

seen = {
    route: simplify_regex(route)
    for route in (r"^archive/(\d{4})/$", r"^archive/(\d{4})/(\d\d)/$")
}
for route, shown in seen.items():
    print(f"{route} is shown as {shown}")
sys.exit(list(seen.values()) != ["/archive/<var>/", r"/archive/<var>/archive/(\d{4})/<var>/"])
PYTHON
