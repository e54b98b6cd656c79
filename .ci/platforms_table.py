"""
Write the results of `.ci/platforms` into the page that shows them.

    python .ci/platforms_table.py RESULTS PAGE

RESULTS is a folder with a JUnit file and a heading for each column. A column that did
not run this time keeps the line that it has.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

BEGIN = "<!-- The lines below are written by .ci/platforms. -->\n"
END = "<!-- The lines above are written by .ci/platforms. -->\n"
HEAD = (
    "| Platform | Passed | Failed | Skipped | Date |\n"
    "| --- | ---: | ---: | ---: | --- |\n"
)


def line_of(results: Path, name: str) -> tuple[str, str]:
    """Return a column's heading and its line of the table."""
    heading = (results / f"{name}.heading").read_text(encoding="utf-8")
    suite = ET.parse(results / f"{name}.xml").getroot().find("testsuite")
    if suite is None:
        sys.exit(f"{name}.xml holds no results.")
    total, skipped, *bad = (
        int(suite.attrib[key]) for key in ("tests", "skipped", "failures", "errors")
    )
    passed = total - skipped - sum(bad)
    today = datetime.now(tz=UTC).date()
    return heading, f"| {heading} | {passed} | {sum(bad)} | {skipped} | {today} |\n"


def main(results: Path, page: Path) -> None:
    """Replace the lines of the columns that ran."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {
        match[1]: f"{match[0]}\n"
        for match in re.finditer(r"^\| ([^|]+) \| \d.*$", table, re.MULTILINE)
    }
    names = sorted(path.stem for path in results.glob("*.xml"))
    lines |= dict(line_of(results, name) for name in names)
    shown = "".join(lines[heading] for heading in sorted(lines))
    page.write_text(f"{before}{BEGIN}{HEAD}{shown}{END}{after}", encoding="utf-8")
    sys.stdout.write(HEAD + shown)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
