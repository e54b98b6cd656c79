"""The documentation does what it says, and says what there is."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from django_cqrs import conf, exceptions
from django_cqrs.management.listing import EndpointRow, InterfaceRow, ProjectionRow
from django_cqrs.messages import RESERVED_HEADERS, RESERVED_PREFIXES
from django_cqrs.problems import Rule
from tests.docs_support.pages import (
    DOCS,
    ROOT,
    Block,
    blocks_of,
    document_of,
    name_of,
    pages,
)
from tests.docs_support.reader import CHECKED, RUN, SHOWN, Reader, make_project
from tests.docs_support.terminal import environment, forked

REFERENCE = DOCS / "reference"


def read(
    page: Path, place: Path, base: Path, printed: Mapping[str, str]
) -> list[Block]:
    """Do what a page says; return the blocks that were done."""
    reader = Reader(page, place, base, printed)
    try:
        for example in document_of(page, reader.evaluate).examples():
            example.evaluate()
        reader.finish()
    finally:
        reader.close()
    return reader.done


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the project that every page begins with."""
    place = tmp_path_factory.mktemp("docs")
    make_project(place)
    return place


LOOK = """
import os, sys, warnings
print(__name__, os.path.relpath(__file__), sys.argv, sys.orig_argv[-2:], sys.path)
print(os.getcwd(), sorted(os.environ), sys.warnoptions, sys.stdin.read())
print("to the other", file=sys.stderr)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 15)
if sys.argv[1] == "warn":
    warnings.warn("oh")
sys.exit({"exit": 3, "text": "oh", "end": None}[sys.argv[1]])
"""


@pytest.mark.parametrize("how", ["end", "exit", "text", "kill", "warn", "nothing"])
@pytest.mark.parametrize("command", [["manage.py"], ["-m", "inside.look"]])
def test_what_is_forked_does_what_a_new_process_does(command, how, tmp_path):
    """The commands of the pages are forks; they print and end as a reader's do."""
    (tmp_path / "inside").mkdir()
    for name in ("manage.py", "inside/look.py"):
        (tmp_path / name).write_text(LOOK)
    seen = [
        subprocess.run(
            [*python, *command, how],
            cwd=tmp_path,
            env=environment(tmp_path),
            input="typed",
            capture_output=True,
            text=True,
            check=False,
        )
        for python in ([sys.executable, "-W", "error"], forked())
    ]

    new, fork = [(done.returncode, done.stdout, done.stderr) for done in seen]
    assert fork == new
    assert "to the other" in new[2]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_block_of_a_page_does_what_the_page_says(
    page: Path, tmp_path: Path, base: Path, request: pytest.FixtureRequest
):
    printed: dict[str, str] = {}
    if "$ make demo\n" in page.read_text():
        printed["make demo"] = request.getfixturevalue("demos")[0]

    done = read(page, tmp_path, base, printed)

    assert done == [each for each in blocks_of(page) if not each.is_directive]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_fence_of_a_page_is_a_block_in_a_known_language(page: Path):
    fences = re.findall(r"^ *(`{3,})(.*)$", page.read_text(), re.MULTILINE)
    opening = [info.strip() for _, info in fences if info.strip()]
    blocks = blocks_of(page)

    assert len(fences) == 2 * len(opening)
    assert [f"{each.language} {each.argument}".strip() for each in blocks] == opening
    for block in blocks:
        assert block.is_directive or block.language in (*RUN, *CHECKED, *SHOWN), block


# What the reference must have, so that it does not fall behind the code -----------------


def test_the_reference_of_checks_has_every_rule_and_no_other():
    page = (REFERENCE / "checks.md").read_text()
    found = re.findall(
        r"^\((\S+)\)=\n\n## (django_cqrs\.\w+): (.+)$", page, re.MULTILINE
    )

    expected = [
        (rule.id.lower().replace(".", "-").replace("_", "-"), rule.id, rule.title)
        for rule in Rule
    ]
    assert found == expected
    assert set(re.findall(r"\(django_cqrs\.[EW]\d+\)", page)) <= {
        f"({rule.id})" for rule in Rule
    }


def test_the_reference_of_settings_has_every_key_with_its_default():
    page = (REFERENCE / "settings.md").read_text()
    found = re.findall(r"^## `(\w+)`\n\nDefault: `(.+?)`\.", page, re.MULTILINE)

    defaults = conf.Settings()
    assert found == [
        (key, repr(getattr(defaults, key)).replace("'", '"')) for key in conf.KEYS
    ]


def test_the_reference_of_exceptions_has_the_whole_tree():
    page = (REFERENCE / "exceptions.md").read_text()
    names = set(exceptions.__all__) - {"FieldError"}
    rows = re.findall(
        r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?: +also (?P<also>\w+))?$",
        page[: page.index("## ")],
        re.MULTILINE,
    )

    parents: list[type] = []
    for indent, name, also in rows:
        cls = getattr(exceptions, name)
        parents[len(indent) // 3 :] = [cls]
        bases = {each.__name__ for each in (*parents[-2:-1],)} | ({also} - {""})
        assert {base.__name__ for base in cls.__bases__} == (bases or {"Exception"})
    assert {name for _, name, _ in rows} == names
    assert set(re.findall(r"autoexception:: (\w+)", page)) == names


def test_the_reference_of_commands_has_every_key_of_the_json():
    page = (REFERENCE / "commands.md").read_text()
    table = page[page.index("| key |") : page.index("### Exit code")]
    found = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)

    assert found == [
        field.name
        for kind in (EndpointRow, InterfaceRow, ProjectionRow)
        for field in dataclasses.fields(kind)
    ]


def test_the_reference_of_headers_has_every_reserved_name():
    page = (REFERENCE / "messages-and-headers.md").read_text()
    begin = page.index("These names are reserved:")
    found = set(re.findall(r"`(\w+)`", page[begin : page.index(". A", begin)]))

    assert found == {*RESERVED_HEADERS, *RESERVED_PREFIXES}


def test_every_link_of_the_front_pages_leads_somewhere():
    """Sphinx checks those of docs/; these two pages stand outside."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_no_table_is_cut(page):
    """Every run of rows begins with its heading and the line below that."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
        lines = table.splitlines()
        assert len(lines) > 1, table
        assert re.fullmatch(r"\|( ?:?-+:? ?\|)+", lines[1]), table


def test_the_tree_in_the_module_of_exceptions_has_every_one():
    """Its docstring names what the module offers."""
    named = set(re.findall(r"[A-Z]\w+", str(exceptions.__doc__)))

    assert set(exceptions.__all__) - {"FieldError"} - named == set()
