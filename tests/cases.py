"""
The acceptance cases that tests claim, as a page: ``python -m tests.cases``.

A test claims a case by its id in brackets at the end of its docstring: [B05.2] is the
second case of section B05.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "CASES.md"

PARTS = {
    "B": "Buses",
    "M": "Modelling",
    "C": "Channels",
    "G": "Schemas and graph",
    "K": "Test kit",
    "S": "Schedules",
    "T": "Tenants",
    "E": "Events",
}
SECTIONS = {
    "B01": "Commands by class",
    "B02": "Routing keys and payloads",
    "B03": "Results",
    "B04": "Queries",
    "B05": "Event subscriptions",
    "B06": "Order of event handlers",
    "B07": "A failing event handler",
    "B08": "Headers",
    "B09": "Propagation",
    "B10": "Identity",
    "B11": "Parameters",
    "B12": "Transaction",
    "B13": "Interceptors",
    "B14": "Buses of your own",
    "B15": "Async views",
    "B16": "Routes",
    "B17": "HTTP",
    "M01": "Factory",
    "M02": "Action",
    "M03": "Factory or action",
    "M04": "Recorded events",
    "M05": "Event and query handlers",
    "M06": "Aggregate makes aggregate",
    "M07": "Locking",
    "M08": "Identifiers",
    "M09": "Repositories",
    "M10": "Fetch",
    "M11": "Documents",
    "M12": "Business interfaces",
    "M13": "SQL interfaces",
    "M14": "Sagas",
    "C01": "With the data",
    "C02": "Delivery",
    "C03": "Settle",
    "C04": "Retry",
    "C05": "Dead letters",
    "C06": "Idempotency",
    "C07": "Order",
    "C08": "Engines",
    "C09": "Operation",
    "C10": "Databases",
    "G03": "Who sends what",
    "G04": "The graph shown",
    "K01": "Scenario",
    "K02": "Flow",
    "K03": "Machines",
    "S01": "Firing",
    "S02": "Once",
    "S03": "Missed",
    "S04": "Overlap",
    "S05": "Time zones",
    "S06": "Operating",
    "S07": "Tenants",
    "T01": "Alias",
    "T02": "Schemas",
    "T03": "Never mixed",
    "T04": "Turns",
    "E01": "Returned events",
    "E02": "Recorded events",
    "E03": "Appliers",
    "E04": "Identifier and version",
    "E05": "Two at once",
    "E06": "Published events",
    "E07": "Models and sagas with a stream",
    "E08": "Snapshots",
    "E09": "Natural keys",
    "E10": "Append and read",
    "E11": "Bad input",
    "E12": "Links",
    "E13": "Names and schemas",
    "E14": "Archive, truncate, delete",
    "E15": "Nothing is skipped",
    "E16": "Inside transactions",
    "E17": "Follow",
    "E18": "One at a time",
    "E19": "Locks are few",
    "E20": "Declaration",
    "E21": "Inline",
    "E22": "Following",
    "E23": "Shards",
    "E24": "Failure and change",
    "E25": "Row",
    "E26": "State, flush, emit",
    "E27": "Metadata",
    "E28": "Init, reset, backfill, delete",
    "E29": "Rebuild",
    "E30": "A new version",
    "E31": "Read your writes",
    "E32": "Personal data",
    "E33": "Admin",
    "E34": "Commands",
    "E35": "Test kit",
    "E36": "Outbox and jobs",
    "E37": "Telemetry",
    "E38": "Async",
    "E39": "Upgrade",
    "E40": "Speed and growth",
}

_CLAIM = re.compile(r"\[((?:[A-Z]\d\d(?:\.\d{1,2})?(?:, )?)+)\]")


def claims():
    """Return the ids of the cases, and the files whose tests claim each."""
    found = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for group in _CLAIM.findall(ast.get_docstring(node) or ""):
                    for case in group.split(", "):
                        found[case].add(str(path.relative_to(TESTS)))
    return found


def page():
    """Return the page: each section, its cases and where they are tested."""
    found = claims()
    lines = [
        "# Acceptance cases",
        "",
        "What the package promises is divided into cases. A test that proves one names it at",
        "the end of its docstring: `[B05.2]` is the second case of section B05. This page is",
        "made from the docstrings by `python -m tests.cases`.",
    ]
    for letter, part in PARTS.items():
        lines += ["", f"## {part} ({letter})"]
        for section, title in SECTIONS.items():
            cases = sorted(
                (case for case in found if case.partition(".")[0] == section),
                key=lambda case: int(case.partition(".")[2] or 0),
            )
            if section[0] != letter or not cases:
                continue
            lines += ["", f"### {section} {title}", ""]
            for case in cases:
                files = ", ".join(f"`{name}`" for name in sorted(found[case]))
                lines.append(f"- {case}: {files}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
