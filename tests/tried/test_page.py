"""The page speaks of the versions that are tried."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/tried-with.md"


def test_the_page_names_the_versions_that_are_tried():
    """Each package of the page is installed in the version that the page names."""
    found = re.findall(r"^\| ([\w-]+) \| (\d[\w.]*) \|", PAGE.read_text(), re.MULTILINE)

    assert found
    assert found == [(name, version(name)) for name, _ in found]
