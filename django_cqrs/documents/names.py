"""The names that classes are stored under, never their import paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

from django.apps import apps

from django_cqrs.annotations import name_of_type
from django_cqrs.messages import MessageName

T = TypeVar("T")

DOCUMENT_NAME = "__cqrs_document_name__"

_named: WeakSet[type] = WeakSet()
_holders: WeakValueDictionary[str, type] = WeakValueDictionary()


def document(
    name: str, /, *, version: int = 1, aliases: tuple[str, ...] | list[str] = ()
) -> Callable[[type[T]], type[T]]:
    """
    Name the collection of a class whose objects are documents.

    Args:
        name: unique in the project, such as ``"shop.cart"``.
        version: the version of its content's shape, from 1. ``@upcaster`` converts
            older content to it, like that of messages.
        aliases: former names under which objects of this class were stored.

    Subclasses do not inherit the name.

    """
    if not isinstance(name, str) or not name:
        msg = f'@document takes the name: @document("shop.cart"), not {name!r}.'
        raise TypeError(msg)

    def decorate(cls: type[T]) -> type[T]:
        _named.add(cls)
        setattr(cls, DOCUMENT_NAME, MessageName(name, version, tuple(aliases)))
        return cls

    return decorate


def named_documents() -> list[tuple[type, MessageName]]:
    """Return the classes that have a name for their documents, each with that name."""
    classes = {*_named, *_holders.values()}
    return [(each, name) for each in classes if (name := stored_name_of(each))]


def stored_name_of(cls: Any) -> MessageName | None:
    """Return the name of a class, ``app_label.Name`` by default; None without one."""
    own: MessageName | None = getattr(cls, "__dict__", {}).get(DOCUMENT_NAME)
    if own is not None:
        return own
    config = apps.get_containing_app_config(getattr(cls, "__module__", None) or "")
    if config is None or not isinstance(cls, type) or cls.__qualname__ != cls.__name__:
        return None
    return MessageName(f"{config.label}.{cls.__name__}")


def fault_in_name(cls: type) -> str | None:
    """Return the fault of a class's name, or None."""
    own = stored_name_of(cls)
    if own is None:
        config = apps.get_containing_app_config(cls.__module__)
        return (
            "it does not belong to an installed app"
            if config is None
            else "it is not defined at the top of its module"
        )
    for each in (own.name, *own.aliases):
        holder = _holders.setdefault(each, cls)
        if holder is not cls and _path_of(holder) == _path_of(cls):
            _holders[each] = cls  # the same class, defined again
        elif holder is not cls:
            return f"{_path_of(holder)} is named {each!r} as well"
    return None


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{name_of_type(cls)}"
