"""``cqrs_schema --scaffold``: a higher version and the beginning of an upcaster."""

from __future__ import annotations

import pytest

ONE = '''
@message("ticket.opened")
@dataclass
class TicketOpened:
    """A ticket."""

    number: int


class Other: ...
'''


@pytest.fixture
def locked(project):
    project.write(ONE)
    assert project.run()[0] == 0
    return project


def test_g02_1_the_version_is_raised_and_the_upcaster_raises_until_it_is_filled(
    locked,
):
    """The code is complete: only the body is left to be written."""
    code, text = locked.run("--scaffold", "ticket.opened")

    place = f"{locked.name}/messages.py"
    assert (code, text) == (
        0,
        (
            f"{place}: ticket.opened has version 2 now.\n"
            f"{place}: write the body of the upcaster from version 1, then run "
            "manage.py cqrs_schema.\n"
        ),
    )
    assert (
        locked.code
        == '''\
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django_cqrs import message
from django_cqrs.conversion import upcaster


@message("ticket.opened", version=2)
@dataclass
class TicketOpened:
    """A ticket."""

    number: int


@upcaster("ticket.opened", version=1)
def ticket_opened_from_version_1(
    payload: dict[str, Any],
) -> dict[str, Any]:
    # It takes a payload of version 1, such as {"number": 1}
    raise NotImplementedError("Return that of version 2.")


class Other: ...
'''
    )

    locked.reload()
    code, text = locked.run("--check")
    assert code == 1
    assert "its upcaster fails (NotImplementedError: Return that of version 2.)" in text

    body = "    return {**payload, 'urgent': False}"
    filled = locked.code.replace("    number: int", "    number: int\n    urgent: bool")
    (locked.folder / "messages.py").write_text(
        filled.replace(
            '    raise NotImplementedError("Return that of version 2.")', body
        )
    )
    locked.reload()
    assert locked.run()[0] == 0
    assert locked.run("--check")[0] == 0

    assert locked.run("--scaffold", "ticket.opened")[0] == 0
    after = locked.code.partition("class Other")[0]
    assert '@message("ticket.opened", version=3)' in after
    assert after.index("from_version_1") < after.index("from_version_2")


def test_a_version_that_was_raised_by_hand_is_left_as_it_is(locked):
    """Only the upcaster is added."""
    locked.write(ONE.replace('"ticket.opened"', '"ticket.opened", version=5'))

    code, text = locked.run("--scaffold", "ticket.opened")

    assert code == 0
    assert "has version" not in text
    assert '"ticket.opened", version=5)' in locked.code
    assert '@upcaster("ticket.opened", version=1)' in locked.code


@pytest.mark.parametrize(
    ("decorator", "raised"),
    [
        (
            '@message(\n    "ticket.opened",\n    aliases=["b"],\n)',
            '@message(\n    "ticket.opened",\n    aliases=["b"], version=2,\n)',
        ),
        (
            '@message("ticket.opened", version=1, aliases=["ö"])',
            '@message("ticket.opened", version=2, aliases=["ö"])',
        ),
        ('@named("ticket.opened")', '@named("ticket.opened", version=2)'),
        (
            '@django_cqrs.message("ticket.opened")',
            '@django_cqrs.message("ticket.opened", version=2)',
        ),
    ],
)
def test_every_form_of_the_decorator_is_understood(locked, decorator, raised):
    """Lines, letters beyond ASCII, another name, and an attribute of the package."""
    header = (
        "from __future__ import annotations\n\nimport django_cqrs\n"
        "from dataclasses import dataclass\nfrom django_cqrs import message as named\n"
        "from django_cqrs import message\n"
    )
    locked.write(ONE.replace('@message("ticket.opened")', decorator), header=header)

    assert locked.run("--scaffold", "ticket.opened")[0] == 0
    assert raised in locked.code
    locked.reload()


def test_a_message_without_the_decorator_gets_it(project):
    """Its name was that of its place, and stays so."""
    project.write(
        "@dataclass\nclass Opened:\n    number: int\n",
        header="from dataclasses import dataclass\n",
    )
    (project.folder / "handlers.py").write_text(
        "from django_cqrs import command_handler\n"
        f"from {project.name}.messages import Opened\n\n"
        '@command_handler(channel="memory")\ndef keep(event: Opened) -> None: ...\n'
    )
    project.reload()
    assert project.run()[0] == 0
    name = f"{project.name}.Opened"

    assert project.run("--scaffold", name)[0] == 0

    assert project.code.partition("\n\n\n")[0] == (
        "from dataclasses import dataclass\nfrom typing import Any\n"
        "from django_cqrs import message\nfrom django_cqrs.conversion import upcaster"
    )
    assert f'@message("{name}", version=2)\n@dataclass\nclass Opened' in project.code
    project.reload()
    assert "NotImplementedError" in project.run("--check")[1]


def test_a_long_payload_is_shown_on_lines_of_its_own(project):
    """No line of the code is longer than before."""
    fields = "".join(f"    a_field_with_a_name_{n}: int\n" for n in range(5))
    project.write(ONE.replace("    number: int\n", fields))
    assert project.run()[0] == 0

    assert project.run("--scaffold", "ticket.opened")[0] == 0
    assert '    #   "a_field_with_a_name_4": 1\n' in project.code
    assert max(map(len, project.code.splitlines())) <= 88


FOUND = '@message("ticket.opened")'
GONE = "\nTicketOpened = _Made\n_Made.__qualname__ = 'TicketOpened'\n"
UPCASTER = """
from django_cqrs.conversion import upcaster

@upcaster("ticket.opened", version=1)
def old(payload): return payload
"""


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (ONE + UPCASTER, "is locked in version 1, and has an upcaster from it already"),
        (
            ONE.replace(FOUND, FOUND.replace(")", ", version=1 + 0)")),
            "its version= is not a number",
        ),
        (
            ONE.replace(FOUND, FOUND.replace(")", ', **{"version": 1})')),
            "@message takes its arguments by **",
        ),
        (ONE + "\nAny = 3\n", "another thing is called 'Any' in its module"),
        (
            ONE + "\ndef upcaster(): ...\n",
            "another thing is called 'upcaster' in its module",
        ),
        (
            ONE.replace("class TicketOpened", "class _Made") + GONE,
            "its class statement is not found in the module",
        ),
    ],
)
def test_what_a_program_cannot_change_is_left_to_the_developer(locked, source, why):
    """Nothing is written, and the error says what to write by hand."""
    locked.write(source)
    before = locked.code

    code, text = locked.run("--scaffold", "ticket.opened")

    assert code == 1
    assert why in text
    assert locked.code == before


def test_a_class_that_is_not_locked_has_nothing_to_convert_from(project):
    """Lock it first: its former shape would be lost."""
    project.write(ONE)

    code, text = project.run("--scaffold", "ticket.opened")

    assert (code, text) == (1, "There is no locked class 'ticket.opened'.\n")
