"""``manage.py cqrs_schema`` locks classes, checks them, and explains each difference."""

from __future__ import annotations

import json

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command

from django_cqrs.checks import check_schema_lock

ONE = """
@message("ticket.opened")
@dataclass
class TicketOpened:
    number: int
    title: str = ""
"""

CLOSED = ONE.replace("opened", "closed").replace("Opened", "Closed")


@pytest.fixture
def locked(project):
    """Return a project with one locked message."""
    project.write(ONE)
    assert project.run() == (0, f"Wrote {project.name}/messages.lock.json.\n")
    return project


def lines(text):
    return [
        line.replace("If nothing of it was ever stored: ", "ELSE ")
        for line in text.splitlines()
    ]


def test_a_stored_class_is_locked_with_its_shape_and_a_sample(locked):
    """The block holds the version, the shape, and one payload of the version."""
    assert locked.blocks == {
        "$about": "Written by manage.py cqrs_schema. Commit this file, and do not edit it.",
        "ticket.opened": {
            "samples": {"1": {"number": 1, "title": "text"}},
            "shape": {
                "type": "object",
                "fields": {"number": "int", "title": {"type": "str", "default": ""}},
            },
            "version": 1,
        },
        "$format": 1,
    }
    assert locked.run() == (0, "Nothing has changed.\n")
    assert locked.run("--check") == (0, "1 stored class is as locked.\n")


def test_g01_2_check_uses_no_database(locked):
    """Without the mark of a database, each statement would fail."""
    locked.write(ONE.replace("number", "count"))

    assert locked.run("--check")[0] == 1


def test_g01_2_each_finding_has_a_line_with_path_rule_and_remedy(locked):
    """Exit code 1, and for each difference where it is, what it is, what to do."""
    locked.write(
        """
        @dataclass
        class Line:
            sku: str

        @message("ticket.opened")
        @dataclass
        class TicketOpened:
            number: float
            lines: list[Line]
            title: str = "none"
        """
    )

    code, text = locked.run("--check")

    scaffold = "Raise the version and write an upcaster: manage.py cqrs_schema --scaffold ticket.opened. ELSE manage.py cqrs_schema --retire ticket.opened."
    assert code == 1
    assert lines(text) == [
        'ticket.opened number: a type became wider ("int" became "float"). Waiting payloads fit. Run manage.py cqrs_schema.',
        'ticket.opened title: a default changed ("" became "none"). Waiting payloads without the field get the new default. If that is wrong, raise the version and write an upcaster.',
        'ticket.opened lines: a required field was added (it is {"of": {"fields": {"sku": "str"}, "type": "object"}, "type": "list"}). '
        + scaffold,
        "3 differences between the code and its lock files.",
    ]


def test_nothing_is_written_while_there_is_an_error(locked):
    """The lock stays as it was, until the version is raised."""
    before = locked.lock.read_text()
    locked.write(ONE.replace("number: int", "number: str"))

    code, text = locked.run()

    assert code == 1
    assert text.endswith("1 error. Nothing was written.\n")
    assert "ticket.opened number: a type became another one" in text
    assert locked.lock.read_text() == before


def test_fine_changes_are_written_and_what_is_worth_knowing_is_said(locked):
    """A rename looks like one: it is said, and locked."""
    locked.write(ONE.replace("title", "subject"))

    code, text = locked.run()

    assert code == 0
    assert text.splitlines() == [
        "ticket.opened title: this looks like a rename ('title' was removed, and 'subject' was added). If it is one, waiting payloads lose the value: raise the version and write an upcaster.",
        f"Wrote {locked.name}/messages.lock.json.",
    ]
    fields = locked.blocks["ticket.opened"]["shape"]["fields"]
    assert fields["title"] == {"type": "str", "removed": True}
    assert locked.run("--check")[0] == 0


def test_a_removed_field_does_not_come_back_in_another_type(locked):
    """A payload that has the former one may still wait."""
    locked.write(ONE.replace('    title: str = ""\n', ""))
    assert locked.run()[0] == 0
    locked.write(ONE.replace('title: str = ""', "title: int = 0"))

    code, text = locked.run("--check")

    assert code == 1
    assert "ticket.opened title: a type became another one" in text


def test_the_sample_of_the_own_version_stays_what_it_was(locked):
    """It stands for the oldest payloads, which lack what was added since."""
    locked.write(ONE + '    note: str = ""\n')
    assert locked.run()[0] == 0

    block = locked.blocks["ticket.opened"]
    assert "note" in block["shape"]["fields"]
    assert block["samples"] == {"1": {"number": 1, "title": "text"}}


def test_a_class_that_no_longer_reads_its_sample_is_an_error(project):
    """Code of the class refuses what it took before, though its shape is the same."""
    checked = (
        ONE
        + "    def __post_init__(self):\n        if self.number > LIMIT: raise ValueError('too much')\n"
    )
    project.write("LIMIT = 9\n" + checked)
    assert project.run()[0] == 0
    project.write("LIMIT = 0\n" + checked)

    code, text = project.run("--check")

    assert code == 1
    assert (
        "ticket.opened: it does not read the locked sample of its own version (too much)."
        in text
    )


class TestNames:
    def test_a_message_without_a_handler_on_a_channel_is_not_locked(self, project):
        """Only stored classes have a shape to keep."""
        (project.folder / "handlers.py").write_text("from . import messages\n")
        project.write(ONE)

        assert project.run() == (0, "Nothing has changed.\n")
        assert not project.lock.exists()

    @pytest.mark.parametrize(
        ("handler", "is_locked"),
        [
            ("event: messages.TicketOpened", True),
            ("event: messages.Filed", True),
            ("event: messages.Base", True),
            ("event: messages.TicketOpened | None", True),
            ("event: messages.Other", False),
        ],
    )
    def test_a_class_is_stored_by_its_handlers_annotation(
        self, project, handler, is_locked
    ):
        """The class, a base, a Protocol, a union."""
        (project.folder / "handlers.py").write_text(
            f"from django_cqrs import event_handler\nfrom {project.name} import messages\n\n"
            f'@event_handler(channel="memory")\ndef keep({handler}) -> None: ...\n'
        )
        project.write(
            "from typing import Protocol, runtime_checkable\n\n\n\n@dataclass\nclass Base: ...\n\n\n"
            "@runtime_checkable\nclass Filed(Protocol):\n    def file(self): ...\n\n\n"
            "@dataclass\nclass Other: ...\n"
            + ONE.replace("TicketOpened:", "TicketOpened(Base):")
            + "\n    def file(self): ...\n"
        )

        project.run()

        blocks = project.blocks if project.lock.exists() else {}
        assert ("ticket.opened" in blocks) is is_locked

    def test_a_locked_class_stays_locked_without_its_handler(self, locked):
        """Rows may still wait when the last handler is gone."""
        (locked.folder / "handlers.py").write_text("from . import messages\n")
        locked.reload()

        assert locked.run("--check") == (0, "1 stored class is as locked.\n")

    def test_a_class_that_is_gone_is_an_error_until_it_is_retired(self, locked):
        """--retire removes its block."""
        locked.write("")

        code, text = locked.run("--check")
        assert code == 1
        assert lines(text)[0] == (
            f"ticket.opened: no class has this name or alias (it is locked in {locked.name}/messages.lock.json). Restore it, or give its new class aliases=['ticket.opened']. ELSE manage.py cqrs_schema --retire ticket.opened."
        )
        assert locked.run("--retire", "ticket.opened")[0] == 0
        assert list(locked.blocks) == ["$about", "$format"]
        assert locked.run("--check")[0] == 0

    def test_a_rename_without_an_alias_is_an_error_that_names_the_new_class(
        self, locked
    ):
        """With the alias, the block moves to the new name, and the alias must stay."""
        locked.write(ONE.replace("ticket.opened", "ticket.filed"))

        code, text = locked.run("--check")
        assert code == 1
        assert (
            "'ticket.filed' has its shape: if that is its new name, add aliases=['ticket.opened'] there."
            in text
        )

        renamed = ONE.replace(
            '"ticket.opened"', '"ticket.filed", aliases=["ticket.opened"]'
        )
        locked.write(renamed)
        assert locked.run("--check")[0] == 1
        assert locked.run()[0] == 0
        assert locked.blocks["ticket.filed"]["aliases"] == ["ticket.opened"]

        locked.write(ONE.replace("ticket.opened", "ticket.filed"))
        code, text = locked.run("--check")
        assert code == 1
        assert (
            "ticket.filed: a former name is gone (payloads are stored as 'ticket.opened')."
            in text
        )

    def test_retire_locks_a_class_anew(self, locked):
        """Nothing of it was ever stored, so it may change as it likes."""
        locked.write(ONE.replace("number: int", "number: str"))

        assert locked.run("--retire", "ticket.opened")[0] == 0
        assert locked.blocks["ticket.opened"]["samples"] == {
            "1": {"number": "text", "title": "text"}
        }

    def test_a_version_that_went_back_is_an_error(self, locked):
        """The lock has a higher one."""
        locked.write(ONE.replace('"ticket.opened"', '"ticket.opened", version=2'))
        locked.write(
            ONE.replace('"ticket.opened"', '"ticket.opened", version=2')
            + UPCASTER.format(body="return payload", version=1)
        )
        assert locked.run()[0] == 0
        locked.write(ONE)

        code, text = locked.run("--check")
        assert code == 1
        assert (
            "ticket.opened: the version went back (version 2 is locked, the class has 1)."
            in text
        )

    def test_a_class_that_moves_to_another_app_takes_its_block_along(
        self, locked, settings, tmp_path
    ):
        """Both files are written."""
        other = tmp_path / f"{locked.name}_b"
        other.mkdir()
        (other / "__init__.py").touch()
        (other / "messages.py").write_text(locked.code)
        locked._installed = [*locked._installed, other.name]
        locked.write("")

        call_command("cqrs_schema", locked.name, other.name)

        assert "ticket.opened" not in locked.blocks
        assert "ticket.opened" in json.loads((other / locked.lock.name).read_text())

    def test_unknown_names_are_refused_with_the_nearest(self, locked):
        """An app, and a class."""
        with pytest.raises(CommandError, match="There is no app 'shob'"):
            call_command("cqrs_schema", "shob")
        assert locked.run("--retire", "ticket.open")[1] == (
            "There is no locked class 'ticket.open'. Did you mean 'ticket.opened'?\n"
        )
        assert locked.run("--scaffold", "ticket.open")[1] == (
            "There is no locked class 'ticket.open'. Did you mean 'ticket.opened'?\n"
        )


UPCASTER = """

from django_cqrs.conversion import upcaster

@upcaster("ticket.opened", version={version})
def old(payload):
    {body}
"""


class TestUpcasters:
    NEW = ONE.replace('"ticket.opened"', '"ticket.opened", version=2').replace(
        "number: int", "ref: str"
    )

    def test_g02_2_a_missing_one_is_an_error(self, locked):
        """The version was raised, and payloads of version 1 may wait."""
        locked.write(self.NEW)

        code, text = locked.run("--check")

        assert code == 1
        assert lines(text)[0] == (
            "ticket.opened: version 1 has no upcaster. Write one: manage.py cqrs_schema --scaffold ticket.opened. ELSE manage.py cqrs_schema --retire ticket.opened."
        )

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                "return payload",
                "ticket.opened ref: the locked sample of version 1 does not become version 2 (Field required).",
            ),
            (
                "return {'ref': payload['number']}",
                "ticket.opened ref: the locked sample of version 1 does not become version 2 (Input should be a valid string).",
            ),
            (
                "return {'ref': payload['nr']}",
                "does not become version 2 (its upcaster from version 1 rejects it ('nr')).",
            ),
            (
                "return {'ref': payload.nr}",
                "does not become version 2 (its upcaster fails (AttributeError: 'dict' object has no attribute 'nr')).",
            ),
            (
                "raise NotImplementedError",
                "does not become version 2 (its upcaster fails (NotImplementedError())).",
            ),
        ],
    )
    def test_g02_2_one_that_does_not_read_the_sample_is_an_error(
        self, locked, body, said
    ):
        """It has to bring the lock's sample to what the class reads."""
        locked.write(self.NEW + UPCASTER.format(body=body, version=1))

        code, text = locked.run("--check")

        assert code == 1
        assert said in text
        assert locked.run()[0] == 1

    def test_g02_3_a_chain_is_tried_from_each_version(self, locked):
        """Samples of 1 and of 2 both have to become version 3."""
        first = UPCASTER.format(
            body="return {'ref': str(payload['number'])}", version=1
        )
        locked.write(self.NEW + first)
        assert locked.run()[0] == 0
        third = (
            self.NEW.replace("version=2", "version=3").replace("ref: str", "ref: int")
            + first
        )
        second = UPCASTER.replace("old", "older").format(
            body="return {'ref': int(payload['ref'])}", version=2
        )
        locked.write(third + second)

        code, text = locked.run("--check")
        assert code == 1
        assert (
            "ticket.opened ref: the locked sample of version 2 does not become"
            not in text
        )
        assert (
            "version 2 does not become version 3 (its upcaster from version 2" in text
        )

        good = second.replace("int(payload['ref'])", "len(payload['ref'])")
        locked.write(third + good)
        assert locked.run()[0] == 0
        assert locked.blocks["ticket.opened"]["samples"] == {
            "1": {"number": 1, "title": "text"},
            "2": {"ref": "text", "title": "text"},
            "3": {"ref": 1, "title": "text"},
        }

        locked.write(third + good.replace("version=2", "version=7"))
        assert "ticket.opened: version 2 has no upcaster." in locked.run("--check")[1]


class TestSamples:
    def test_an_example_is_the_sample_where_code_decides(self, project):
        """Field(examples=[...]) of pydantic stands before everything else."""
        project.write(
            """
            from typing import Annotated
            from pydantic import AfterValidator, Field

            def check(text):
                if text != "XQ-7": raise ValueError("no part number")
                return text

            Part = Annotated[str, AfterValidator(check)]

            @message("part.sold")
            @dataclass
            class Sold:
                part: Annotated[Part, Field(examples=["XQ-7"])]
            """
        )

        assert project.run()[0] == 0
        assert project.blocks["part.sold"]["samples"] == {"1": {"part": "XQ-7"}}

    def test_a_class_without_a_sample_is_locked_and_it_is_said(self, project):
        """Then an upcaster is only looked for, not tried."""
        source = """
            from pydantic import AfterValidator
            from typing import Annotated

            def check(text):
                if text != "XQ-7": raise ValueError("no part number")
                return text

            @message("part.sold"{version})
            @dataclass
            class Sold:
                part: Annotated[{type}, AfterValidator(check)]
            """
        project.write(source.format(version="", type="str"))

        code, text = project.run()

        assert code == 0
        assert text.splitlines()[0] == (
            'part.sold: it has no sample, so its upcasters will not be tried (part: no part number). Give the field an example: Annotated[..., Field(examples=["..."])] of pydantic.'
        )
        assert project.blocks["part.sold"]["samples"] == {"1": None}
        assert project.run("--check") == (0, "1 stored class is as locked.\n")
        project.write(source.format(version=", version=2", type="int"))
        assert "part.sold: version 1 has no upcaster." in project.run("--check")[1]


class TestDocuments:
    ONE = """
        from django_cqrs.documents import DocumentStore, document

        @document("shop.theme"{version})
        class Theme:
            colour: {type}
            size: int = 1

            def __init__(self, colour):
                self.colour = colour

        themes = DocumentStore(Theme)
        prices = DocumentStore(list[int], collection="shop.prices")
        {more}
        """

    def test_the_state_of_a_document_is_locked_beside_the_messages(self, project):
        """Its attributes are its fields, and its upcasters are those of its name."""
        project.write(self.ONE.format(version="", type="str", more=""))
        assert project.run()[0] == 0
        assert project.blocks["document:shop.theme"] == {
            "samples": {"1": {"colour": "text", "size": 1}},
            "shape": {
                "fields": {"colour": "str", "size": {"required": False, "type": "int"}},
                "type": "object",
            },
            "version": 1,
        }
        assert "document:shop.prices" not in project.blocks

        project.write(self.ONE.format(version="", type="int", more=""))
        code, text = project.run("--check")
        assert code == 1
        assert "document:shop.theme colour: a type became another one" in text

        assert project.run("--scaffold", "document:shop.theme")[0] == 0
        assert '@document("shop.theme", version=2)' in project.code
        body = "return {**payload, 'colour': 1}"
        more = f"""
        from django_cqrs.conversion import upcaster

        @upcaster("shop.theme", version=1)
        def recolour(payload): {body}
        """
        project.write(self.ONE.format(version=", version=2", type="int", more=more))
        assert project.run()[0] == 0

    def test_two_classes_in_one_collection_cannot_be_locked(self, project):
        """Each needs a block, and there is one name."""
        more = "others = DocumentStore(type('Other', (), {'__module__': __name__}), collection='shop.theme')"
        project.write(self.ONE.format(version="", type="str", more=more))

        code, text = project.run()

        assert code == 1
        assert (
            "document:shop.theme: it cannot be locked (another class has the same name). Give each its own name."
            in text
        )


class TestEvents:
    """Stored events are locked as messages are."""

    def test_the_events_of_appliers_are_locked(self, project):
        """Neither a channel nor a handler is needed: they are in the stream."""
        (project.folder / "handlers.py").write_text("from . import messages\n")
        project.write(
            """
            from django_cqrs import command_handler
            from django_cqrs.events import applies, event_stream
            from django_cqrs.modelling import aggregate

            @dataclass
            class Open:
                basket_id: int

            @message("basket.opened")
            @dataclass
            class Opened:
                basket_id: int

            @message("basket.unrelated")
            @dataclass
            class Unrelated:
                basket_id: int

            @aggregate
            @event_stream("basket")
            @dataclass
            class Basket:
                basket_id: int = 0

                @command_handler
                @classmethod
                def open(cls, command: Open) -> Opened:
                    return Opened(command.basket_id)

                @applies
                def opened(self, event: Opened) -> None:
                    self.basket_id = event.basket_id
            """
        )

        assert project.run()[0] == 0
        assert list(project.blocks) == ["$about", "basket.opened", "$format"]

    @staticmethod
    def project_tickets(project):
        (project.folder / "handlers.py").write_text(
            "from django_cqrs import event_handler\n"
            "from django_cqrs.events import projection\n"
            f"from {project.name} import messages\n\n\n"
            '@projection("tickets")\nclass Tickets:\n    @event_handler\n'
            "    def opened(self, event: messages.TicketOpened) -> None: ...\n"
        )

    def test_what_a_projection_takes_is_locked(self, project):
        """Its events are read from the store."""
        self.project_tickets(project)
        project.write(ONE)

        assert project.run()[0] == 0
        assert "ticket.opened" in project.blocks

    def test_what_a_model_with_a_stream_records_is_locked(self, project):
        """A model has no appliers, so its code is read."""
        (project.folder / "handlers.py").write_text("from . import messages\n")
        (project.folder / "models.py").write_text(
            "from django.db import models\n"
            "from django_cqrs import command_handler\n"
            "from django_cqrs.events import event_stream\n"
            "from django_cqrs.modelling import aggregate\n"
            "from django_cqrs.models import RecordsEvents\n"
            f"from {project.name}.messages import Close, TicketOpened, TicketClosed\n\n\n"
            '@aggregate\n@event_stream("shop.ticket")\n'
            "class Ticket(RecordsEvents, models.Model):\n"
            "    @command_handler\n"
            "    def close(self, command: Close) -> None:\n"
            "        self.record(TicketClosed(self.pk))\n"
        )
        project.write(
            "@dataclass\nclass Close:\n    ticket_id: int\n\n" + ONE + "\n" + CLOSED
        )

        assert project.run()[0] == 0
        assert list(project.blocks) == ["$about", "ticket.closed", "$format"]

    def test_an_upcaster_may_take_headers_and_may_drop_an_event(self, locked):
        """A sample has every header. A message that waits cannot be dropped."""
        new = ONE.replace('"ticket.opened"', '"ticket.opened", version=2')
        start = "\n\nfrom django_cqrs.conversion import upcaster\n\n"
        locked.write(
            new.replace("number: int", "number: str")
            + start
            + '@upcaster("ticket.opened", version=1)\n'
            "def old(payload, headers):\n"
            "    return {**payload, 'number': headers['user']}\n"
        )
        assert locked.run("--check")[1].startswith(
            "ticket.opened: it has a new version"
        )

        dropped = (
            new + start + '@upcaster("ticket.opened", version=1)\n'
            "def old(payload): return None\n"
        )
        locked.write(dropped)
        assert "does not become version 2 (Input should be" in locked.run("--check")[1]
        self.project_tickets(locked)
        locked.write(dropped)
        assert locked.run()[0] == 0


class TestBadInput:
    def test_a_name_that_the_file_needs_itself_cannot_be_locked(self, project):
        """Keys that begin with a dollar sign are the file's own."""
        project.write(ONE.replace("ticket.opened", "$format"))

        assert (
            "$format: it cannot be locked (its name begins with '$'). Give it another name."
            in project.run()[1]
        )

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "it is broken (it is not valid JSON (line 1:"),
            ("<<<<<<< a\n{\n=======\n", "Complete the merge by hand."),
            (
                '{"$format": 9}',
                "Restore it from the repository, then run manage.py cqrs_schema.",
            ),
        ],
    )
    def test_a_broken_file_is_one_finding_and_is_not_overwritten(
        self, locked, text, said
    ):
        """Its classes are not called new."""
        locked.lock.write_text(text)

        for arguments in ((), ("--check",)):
            code, found = locked.run(*arguments)
            assert code == 1
            assert found.startswith(f"{locked.name}/messages.lock.json: it is broken (")
            assert said in found
            assert len(found.splitlines()) == 2
        assert locked.lock.read_text() == text

    def test_an_edited_file_that_is_still_right_is_written_anew(self, locked):
        """Another order or other spaces are no error, but a difference."""
        good = locked.lock.read_text()
        locked.lock.write_text(json.dumps(locked.blocks))

        code, text = locked.run("--check")
        assert code == 1
        assert lines(text)[0] == (
            f"{locked.name}/messages.lock.json: it is not as manage.py cqrs_schema writes it. Run manage.py cqrs_schema."
        )
        assert locked.run()[0] == 0
        assert locked.lock.read_text() == good

    def test_a_conflict_that_git_left_is_resolved_by_the_command(self, locked):
        """Both branches added a message at one place."""
        locked.write(ONE + CLOSED)
        assert locked.run()[0] == 0
        good = locked.lock.read_text()
        begin, end = good.index('  "ticket.closed"'), good.index('  "ticket.opened"')
        last = good.index('  "$format"')
        parts = [good[:begin], good[begin:end], good[end:last], good[last:]]
        locked.lock.write_text(
            "{}<<<<<<< ours\n{}=======\n{}>>>>>>> theirs\n{}".format(*parts)
        )

        code, text = locked.run("--check")
        assert code == 1
        assert "it has the marks of a conflict. Run manage.py cqrs_schema." in text
        assert locked.run()[0] == 0
        assert locked.lock.read_text() == good

    def test_a_class_without_a_json_form_cannot_be_locked(self, project):
        """The reason is that of the check of its handler."""
        project.write(
            """
            class Thing: ...

            @message("thing.made")
            @dataclass
            class Made:
                thing: Thing
            """
        )

        code, text = project.run()

        assert code == 1
        assert lines(text)[0] == (
            "thing.made: it cannot be locked (thing: Thing has no JSON form). Use types that JSON can represent, or write a @converter."
        )

    def test_a_class_outside_the_apps_cannot_be_locked(self, project, tmp_path):
        """There is no file that it would belong to."""
        (tmp_path / f"{project.name}x.py").write_text(
            f"from dataclasses import dataclass\nfrom django_cqrs import message\n{ONE}"
        )
        (project.folder / "handlers.py").write_text(
            "from django_cqrs import event_handler\n"
            f"from {project.name}x import TicketOpened\n\n"
            '@event_handler(channel="memory")\n'
            "def keep(event: TicketOpened): ...\n"
        )
        project.write("")

        code, text = project.run("--check")

        assert code == 1
        assert lines(text)[0] == (
            f"ticket.opened: it cannot be locked ({project.name}x.TicketOpened does not belong to an installed app). Move it to the messages module of one."
        )

    def test_a_file_that_cannot_be_written_is_a_clear_error(self, locked, monkeypatch):
        """The reason is that of the system."""
        locked.write(ONE + "    note: str = ''\n")

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.replace", refuse)

        code, text = locked.run()

        assert code == 1
        assert (
            text
            == f"Cannot write {locked.name}/messages.lock.json: [Errno 13] Permission denied\n"
        )
        assert len(list(locked.folder.glob("*.json"))) == 1


class TestSystemCheck:
    """`manage.py check --tag cqrs_schema` reports what --check does, and nothing else does."""

    @pytest.mark.parametrize(
        ("change", "number"),
        [
            (lambda p: p.write(ONE + "    note: str = ''\n"), "E100"),
            (lambda p: p.write(ONE.replace("number: int", "number: str")), "E101"),
            (lambda p: p.write(TestUpcasters.NEW), "E102"),
            (lambda p: p.lock.write_text("{"), "E103"),
        ],
    )
    def test_E100_E101_E102_E103_are_found_by_their_tag_alone(
        self, locked, change, number
    ):
        """runserver and other commands run without it."""
        change(locked)

        found = [each.id for each in run_checks(tags=["cqrs_schema"])]

        assert found[0] == f"django_cqrs.{number}"
        assert all(each.hint for each in run_checks(tags=["cqrs_schema"]))
        assert not [
            each for each in run_checks(tags=["django_cqrs"]) if each.id in found
        ]

    @pytest.mark.django_db(databases="__all__")
    def test_a_run_of_all_checks_does_not_look_at_the_files(self, locked):
        """Every command of manage.py runs all checks."""
        locked.lock.write_text("{")

        assert not [each for each in run_checks() if each.id == "django_cqrs.E103"]
        call_command("check")
        with pytest.raises(CommandError, match="E103"):
            call_command("check", tags=["cqrs_schema"])

    def test_E104_a_class_that_cannot_be_locked(self, locked):
        """Its app has a lock file."""
        locked.write(ONE + "\n\nclass Thing: ...\n\n" + CLOSED.replace("int", "Thing"))

        [found] = [e for e in check_schema_lock() if e.id == "django_cqrs.E104"]

        assert found.obj.__name__ == "TicketClosed"
        assert (
            found.msg
            == "ticket.closed: it cannot be locked (number: Thing has no JSON form)."
        )

    def test_an_app_without_a_lock_file_is_left_alone(self, project):
        """Who does not use it, is not told about it."""
        project.write(ONE)

        assert run_checks(tags=["cqrs_schema"]) == []


def test_export_prints_the_json_schemas_of_locked_classes(locked):
    """One document with a version, for programs that are not in Python."""
    code, text = locked.run("--export", "json")

    assert code == 0
    document = json.loads(text)
    assert document["version"] == 1
    message = document["messages"]["ticket.opened"]
    assert message["version"] == 1
    assert message["aliases"] == []
    [definition] = message["schema"]["$defs"].values()
    assert definition["required"] == ["number"]
