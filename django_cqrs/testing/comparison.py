"""Compare expected messages with those that were sent: equal, or alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, final

from django_cqrs.annotations import field_names, name_of_type
from django_cqrs.exceptions import InvalidOption


@final
class Anything:
    """A value that equals any other: :data:`ANYTHING`."""

    def __eq__(self, other: object) -> bool:
        """Return True."""
        return True

    def __hash__(self) -> int:
        """Return the same number each time."""
        return 0

    def __repr__(self) -> str:
        """Return its name."""
        return "ANYTHING"


ANYTHING: Final[Any] = Anything()
"""A value that equals any other, for the parts of a message that a test ignores."""


@final
class Like:
    """An object of a class with some values, or one that a function accepts."""

    def __init__(
        self,
        wanted: type | Callable[[Any], object],
        fields: Mapping[str, Any],
    ) -> None:
        """Take a class and the values of some attributes, or a function alone."""
        self.wanted = wanted
        self.fields = fields

    def difference(self, found: Any) -> Mismatch | None:
        """Return the first difference of an object, None if it is alike."""
        if not isinstance(self.wanted, type):
            return None if self.wanted(found) else Mismatch("", self, found)
        if not isinstance(found, self.wanted):
            return Mismatch("", self, found)
        for name, expected in self.fields.items():
            if not hasattr(found, name):
                return Mismatch(name, expected, _MISSING)
            rest = first_difference(expected, getattr(found, name))
            if rest is not None:
                return rest.inside(name)
        return None

    def __eq__(self, other: object) -> bool:
        """Return whether an object is alike."""
        return self.difference(other) is None

    def __hash__(self) -> int:
        """Return the same number each time."""
        return 0

    def __repr__(self) -> str:
        """Return the call that made it."""
        name = getattr(self.wanted, "__qualname__", repr(self.wanted))
        said = [name, *(f"{key}={value!r}" for key, value in self.fields.items())]
        return f"like({', '.join(said)})"


def like(wanted: type | Callable[[Any], object], /, **fields: Any) -> Any:
    """
    Return a value that equals every object of a class with the given attributes.

    ::

        like(OrderPlaced, order_id=7)       # whatever its other attributes are
        like(lambda total: total > 10)      # whatever the function accepts

    Args:
        wanted: a class; or a function that takes the object, and returns whether it is
            accepted.
        **fields: the values of some attributes, which may be alike only, too.

    Raises:
        InvalidOption: the first argument is neither, or a function has attributes.

    """
    if not callable(wanted):
        msg = f"like() takes a class or a function, not {wanted!r}."
        raise InvalidOption(msg)
    if fields and not isinstance(wanted, type):
        msg = "like() takes the values of attributes with a class, not with a function."
        raise InvalidOption(msg)
    return Like(wanted, fields)


class Mismatch(NamedTuple):
    """The first place where an object differs from the expected one."""

    path: str
    """The attributes and keys on the way there; empty for the object itself."""
    expected: Any
    found: Any

    def inside(self, step: Any) -> Mismatch:
        """Return the same place, seen from the object that holds this one."""
        path = f"{step}.{self.path}" if self.path else str(step)
        return self._replace(path=path)

    @property
    def depth(self) -> int:
        """The number of steps to the place."""
        return self.path.count(".") + 1 if self.path else 0

    def __str__(self) -> str:
        """Return a sentence without its full stop."""
        where = self.path or "it"
        if self.found is _MISSING:
            return f"{where} is missing"
        if self.expected is _MISSING:
            return f"{where} is {self.found!r}, which is not expected"
        if not self.path and isinstance(self.expected, type):
            return f"it is of type {name_of_type(type(self.found))}"
        return f"{where} is {self.found!r}, not {self.expected!r}"


@final
class _Absent:
    def __repr__(self) -> str:
        return "missing"


_MISSING: Final = _Absent()


def first_difference(expected: Any, found: Any) -> Mismatch | None:
    """
    Return the first difference between two values, None if they are equal.

    Args:
        expected: a value, which may contain :data:`ANYTHING` and :func:`like`.
        found: the value to compare it with.

    """
    if expected is ANYTHING:
        return None
    if isinstance(expected, Like):
        return expected.difference(found)
    cls = type(expected)
    if cls is not type(found):
        if _is_plain(expected) and expected == found:
            return None
        is_whole = _parts(expected) is not None and _parts(found) is not None
        return Mismatch("", cls if is_whole else expected, found)
    if expected == found:
        return None
    ours, theirs = _parts(expected), _parts(found)
    if ours is None or theirs is None:
        return Mismatch("", expected, found)
    for key, part in ours.items():
        if key not in theirs:
            return Mismatch(str(key), part, _MISSING)
        rest = first_difference(part, theirs[key])
        if rest is not None:
            return rest.inside(key)
    more = [key for key in theirs if key not in ours]
    if more:
        return Mismatch(str(more[0]), _MISSING, theirs[more[0]])
    return None


def _is_plain(value: Any) -> bool:
    return _parts(value) is None


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return the parts of a value, by name, key or number; None if it has none."""
    names = field_names(type(value))
    if names is not None:
        return {name: getattr(value, name, _MISSING) for name in names}
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return None
