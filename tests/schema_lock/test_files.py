"""Lock files: the same bytes everywhere, merged cleanly, and never half understood."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from django_cqrs.conversion.schemas import core_schema_of
from django_cqrs.schema_lock.files import LockedBlock, read, write, written
from django_cqrs.schema_lock.locked_shapes import described
from django_cqrs.schema_lock.samples import sample_of
from django_cqrs.schema_lock.sources import StoredClass
from tests.schema_lock import everything

EXPECTED = Path(__file__).with_name("everything.lock.json")


def block(name, *, version=1, shape=None, samples=None, aliases=()):
    made = {number: {"a": number} for number in range(1, version + 1)}
    return LockedBlock(
        name, version, aliases, shape or {"type": "any"}, samples or made
    )


def blocks_of(classes):
    """Return the blocks of the classes of a module, as the command makes them."""
    for cls, name in classes:
        one = StoredClass(cls, name, cls)
        sample, why = sample_of(one.described, one.read)
        assert why == "", name
        yield LockedBlock(one.key, name.version, (), one.described.shape, {1: sample})


def test_g01_1_the_same_code_has_the_same_bytes_everywhere():
    """Every Python and every pydantic of the matrix writes this file."""
    assert written(blocks_of(everything.named())) == EXPECTED.read_text()


@pytest.mark.long
def test_g01_1_neither_hashes_nor_the_order_of_imports_change_the_bytes():
    """Sets, unions and literals are written in an order of their own."""
    program = (
        "import typing; typing.Union[str, int]; typing.Literal['b', 'a'];"
        "import django; django.setup();"
        "from tests.schema_lock import everything, test_files;"
        "print(test_files.written(test_files.blocks_of(everything.named())), end='')"
    )
    for seed in "12":
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONHASHSEED": seed,
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

        assert done.stdout == EXPECTED.read_bytes()


def test_g02_4_samples_are_made_from_types_alone():
    """No value of the program is in one: neither a default nor an instance's."""
    one = StoredClass(everything.Everything, everything.NAME, everything.Everything)

    sample, _ = sample_of(one.described, one.read)

    assert "never in a sample" not in json.dumps(sample)
    assert "never in a sample" in json.dumps(one.described.shape)
    assert one.read(sample)


def git(folder, *arguments):
    return subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed.")
    git(tmp_path, "init", "-q", "-b", "main")
    return tmp_path


def commit(folder, blocks, *, branch=None):
    if branch is not None:
        git(folder, "checkout", "-q", "-b", branch, "main")
    write(folder / "lock.json", written(blocks))
    git(folder, "add", "lock.json")
    assert git(folder, "commit", "-q", "-m", "x").returncode == 0


def merged(folder, first, second):
    git(folder, "checkout", "-q", first)
    return git(folder, "merge", second)


def test_g01_7_two_branches_that_each_added_a_message_merge_cleanly(repository):
    """At the beginning, between two others and at the end of the file."""
    common = [block(name) for name in ("b", "d")]
    commit(repository, common)
    commit(repository, [*common, block("a")], branch="first")
    commit(repository, [*common, block("c")], branch="second")
    commit(repository, [*common, block("e")], branch="third")

    assert merged(repository, "first", "second").returncode == 0
    assert merged(repository, "first", "third").returncode == 0

    text = (repository / "lock.json").read_text()
    assert text == written([block(name) for name in "abcde"])


def test_g01_7_a_conflict_at_one_place_is_understood(repository):
    """Where both stand at one place, both sides are read as they are."""
    commit(repository, [block("a"), block("d")])
    commit(repository, [block("a"), block("b"), block("d")], branch="first")
    commit(repository, [block("a"), block("c"), block("d")], branch="second")

    assert merged(repository, "first", "second").returncode == 1

    found = read(repository / "lock.json")
    assert found.is_conflicted
    assert found.fault == ""
    assert written(found.blocks) == written([block(name) for name in "abcd"])


def test_a_conflict_in_one_message_keeps_both_sides(repository):
    """Payloads of either may wait, so the code is compared with both."""
    one, other = ({"type": name} for name in ("int", "str"))
    commit(repository, [block("a")])
    commit(repository, [block("a", shape=one)], branch="first")
    commit(repository, [block("a", shape=other)], branch="second")

    merged(repository, "first", "second")

    found = read(repository / "lock.json")
    assert [each.shape for each in found.blocks] == [one, other]


def test_a_file_comes_back_as_it_was_written(tmp_path):
    """Reading and writing are each other's reverse."""
    blocks = list(blocks_of(everything.named()))
    blocks.append(block("old", version=3, aliases=("older",)))
    write(tmp_path / "lock.json", written(blocks))

    found = read(tmp_path / "lock.json")

    assert found.fault == ""
    assert written(found.blocks) == found.text
    assert not list(tmp_path.glob(".*"))


def test_a_missing_file_is_an_empty_one(tmp_path):
    """An app without a lock file has nothing locked."""
    found = read(tmp_path / "lock.json")

    assert (found.text, found.blocks, found.fault) == ("", (), "")


GOOD = json.loads(written([block("a", version=2)]))


def broken(**changes):
    return json.dumps({**GOOD, "a": {**GOOD["a"], **changes}})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "it is not valid JSON (line 1: "),
        ("[]", "it has no '$format', so it is not a lock file"),
        ('{"$format": 2}', "it has the format 2, and this version"),
        (
            '{"a": 1, "a": 2, "$format": 1}',
            "it has 'a' twice, as after a merge by hand",
        ),
        ('{"a": 1, "$format": 1}', "the block of 'a' does not have exactly the keys"),
        (broken(more=1), "the block of 'a' does not have exactly the keys"),
        (broken(version="1"), "the block of 'a' has the version '1'"),
        (broken(version=0), "the block of 'a' has the version 0"),
        (broken(aliases="x"), "the aliases of 'a' are not a list of names"),
        (broken(samples={"x": 1}), "the samples of 'a' are not one for each version"),
        (
            broken(samples={"1": 1}),
            "the samples of 'a' do not end with one of version 2",
        ),
        (broken(version=1), "the samples of 'a' do not end with one of version 1"),
        (broken(shape="int4"), "the shape of 'a' is not one of its words ('int4' is"),
        (broken(shape={"type": "list"}), "a shape of the type 'list' lacks 'of'"),
        (broken(shape={"type": "union", "of": "int"}), "'of' of a shape of the type"),
        (broken(shape={"type": "int", "keys": "int"}), "the type 'int' has 'keys'"),
        (broken(shape={"type": "object", "fields": []}), "the shape of 'a' is not one"),
        (broken(shape=3), "3 is not a shape"),
        ("<<<<<<< ours\n{\n=======\n{\n>>>>>>> theirs\n", "it is not valid JSON"),
        ("=======\n{}\n>>>>>>> theirs\n", "it is not valid JSON"),
    ],
)
def test_a_file_that_was_edited_or_half_merged_has_one_clear_fault(
    tmp_path, text, fault
):
    """Nothing of it is used, and the fault says where to look."""
    path = tmp_path / "lock.json"
    path.write_text(text)

    found = read(path)

    assert fault in found.fault
    assert found.blocks == ()


def test_a_file_that_cannot_be_read_has_a_fault(tmp_path):
    """A folder, or bytes that are not text."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")

    assert "it cannot be read" in read(tmp_path / "folder").fault
    assert "it cannot be read" in read(tmp_path / "bytes").fault


def test_a_message_may_be_called_as_a_part_of_a_shape(tmp_path):
    """Fields and tags called "type", "of" or "fields" are names, not words."""
    cls = everything.Words
    shape = described(core_schema_of(cls)).shape
    text = written([block("words", shape=shape)])
    (tmp_path / "lock.json").write_text(text)

    found = read(tmp_path / "lock.json")

    assert found.fault == ""
    assert found.blocks[0].shape == shape
