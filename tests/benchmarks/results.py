"""What was measured: rows of one table, and the same as JSON."""

from __future__ import annotations

import dataclasses
import platform
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tests.benchmarks.measuring import Comparison

PACKAGES = (
    "django-cqrs-kit",
    "django",
    "pydantic",
    "psycopg",
    "python-cqrs",
    "mediatr",
    "lato",
    "django-queuebie",
    "celery",
    "kombu",
    "django-celery-outbox",
)
RESULTS = "\n## Results\n"
HEADINGS = ("", "one call", "ratio", "min..max", "bound", "holds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One line of the table.

    Its value is the ratio to `base`, the first line of its section, unless `unit` says
    otherwise. One section has one base.
    """

    section: str
    what: str
    value: float
    unit: str = "x"
    seconds: float | None = None
    base: str = ""
    base_seconds: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    at_least: float | None = None
    rounds: int | None = None
    is_noisy: bool = False
    """Whether it compares a thing with itself, and finds a difference by chance."""

    @property
    def holds(self) -> bool | None:
        """Whether the value is within its bound, None where it has none."""
        if self.bound is None and self.at_least is None:
            return None
        return (self.bound is None or self.value <= self.bound) and (
            self.at_least is None or self.value >= self.at_least
        )

    def _bound(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g} {self.unit}"
        return "" if self.bound is None else f"{self.bound:g} {self.unit}"

    def cells(self) -> list[str]:
        """Return the line as text."""
        spread = ""
        if self.low is not None and self.high is not None:
            spread = f"{_number(self.low)}..{_number(self.high)}"
        return [
            f"  {self.what}",
            "" if self.seconds is None else time_of(self.seconds),
            f"{_number(self.value)} {self.unit}",
            spread,
            self._bound(),
            {None: "", True: "yes", False: "NO"}[self.holds],
        ]


def compared(
    comparison: Comparison,
    section: str,
    what: str,
    base: str,
    *,
    bound: float | None = None,
    at_least: float | None = None,
    inverse: bool = False,
) -> Row:
    """
    Return the row of one contestant against another of the same rounds.

    Args:
        comparison: of their times.
        section: the heading that it stands under.
        what: the contestant.
        base: the other.
        bound: what the ratio may be at most.
        at_least: what it must be at the least.
        inverse: give the ratio of their speeds and not of their times.

    """
    pair = (base, what) if inverse else (what, base)
    ratio = comparison.ratio(*pair)
    return Row(
        section=section,
        what=what,
        value=ratio.median,
        seconds=comparison.seconds(what),
        base=base,
        base_seconds=comparison.seconds(base),
        low=ratio.low,
        high=ratio.high,
        bound=bound,
        at_least=at_least,
        rounds=comparison.rounds,
    )


HELD = "Every bound holds."
BUSY = (
    "The machine is too busy: a function that is compared with itself differs by as "
    "much as a bound allows. The figures say nothing, and no bound is enforced."
)


def verdict(rows: list[Row], *, is_judged: bool = True) -> tuple[str, bool]:
    """Return what the bounds say in one sentence, and whether the run passes."""
    missed = sum(row.holds is False for row in rows)
    if not is_judged:
        return "A quick run: the figures say nothing, and no bound is enforced.", True
    if any(row.is_noisy for row in rows):
        return BUSY, True
    if missed:
        return f"{missed} of the bounds are missed.", False
    return HELD, True


def time_of(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 10_000:
            digits = 1 if unit != "ns" and seconds * factor < 100 else 0
            return f"{seconds * factor:,.{digits}f} {unit}"
    return f"{seconds:,.1f} s"


def _number(value: float) -> str:
    if abs(value) >= 10:
        return f"{value:,.1f}"
    return f"{value:.3f}"


def _lines(rows: list[Row]) -> list[list[str]]:
    """Return all rows as text, a heading before each section."""
    lines: list[list[str]] = []
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            lines.append([section, *[""] * (len(HEADINGS) - 1)])
            if row.base_seconds is not None:
                time = time_of(row.base_seconds)
                lines.append([f"  {row.base}", time, "1 x", "", "", ""])
        lines.append(row.cells())
    return lines


def table(rows: list[Row]) -> str:
    """Return all rows as one table."""
    return tabulate(
        _lines(rows),
        headers=HEADINGS,
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", "right", "right", "right", "right", "left"),
        preserve_whitespace=True,
    )


def page(text: str, rows: list[Row], facts: dict[str, Any], notes: list[str]) -> str:
    """Return the text of a page with these results in place of its own."""
    packages = ", ".join(f"{k} {v}" for k, v in facts["packages"].items() if v)
    said = [
        f"{facts['python']}; {facts['system']}, {facts['processor']}; {packages}.",
        *notes,
    ]
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " ---: |" * 4 + " --- |"]
    for first, *others in _lines(rows):
        # A heading has no indentation.
        what = first.strip() if first.startswith(" ") else f"**{first}**"
        lines.append(f"| {' | '.join([what, *others])} |")
    results = "\n".join([*(f"- {each}" for each in said), "", *lines])
    before, heading, rest = text.partition(RESULTS)
    _, end, after = rest.partition("\n## ")
    return f"{before}{heading}\n{results}\n{end}{after}"


def as_json(rows: list[Row], facts: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return everything that was printed, and the figures unrounded."""
    return {
        "facts": facts,
        "notes": notes,
        "rows": [{**dataclasses.asdict(row), "holds": row.holds} for row in rows],
    }


def facts() -> dict[str, Any]:
    """Return what a reader needs to know of the machine and the versions."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimized = "with" if "--enable-optimizations" in options else "without"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"built {optimized} --enable-optimizations",
        "system": platform.platform(),
        "processor": _processor(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
