"""Django's tasks: a part of Django 6.0, and for 5.2 the package ``django-tasks``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Final

from django.core.checks import CheckMessage
from django.utils.module_loading import import_string

PACKAGE: Final = "django.tasks" if find_spec("django.tasks") else "django_tasks"
"""The path of the package that is used."""


def from_tasks(path: str) -> Any:
    """
    Return an object of the package.

    Args:
        path: the place in the package: ``"base.Task"``.

    Raises:
        ImportError: the package is not installed, or has no such object.

    """
    try:
        return import_string(f"{PACKAGE}.{path}")
    except ImportError as error:
        msg = (
            f"{error}; pip install 'django-cqrs-kit[tasks]' installs it for Django 5.2"
        )
        raise ImportError(msg) from error


if TYPE_CHECKING:

    class BaseTaskBackend:
        """Django's base of task backends, for type checkers."""

        task_class: ClassVar[type]

        def __init__(self, alias: str, params: dict[str, Any]) -> None:
            self.alias: str = alias
            self.queues: set[str] = set()
            self.options: dict[str, Any] = {}

        def validate_task(self, task: Any) -> None: ...

        def check(self, **kwargs: Any) -> Iterable[CheckMessage]: ...

else:
    BaseTaskBackend = from_tasks("backends.base.BaseTaskBackend")

_IS_DJANGOS: Final = BaseTaskBackend.__module__.startswith("django.tasks.")
Task: Any = from_tasks("base.Task")
TaskResult: Any = from_tasks("base.TaskResult")
TaskContext: Any = from_tasks("base.TaskContext")
TaskError: Any = from_tasks("base.TaskError")
TaskResultStatus: Any = from_tasks("base.TaskResultStatus")
make_task: Callable[..., Any] = from_tasks("task")
task_backends: Any = from_tasks("task_backends")
task_enqueued: Any = from_tasks("signals.task_enqueued")
task_started: Any = from_tasks("signals.task_started")
task_finished: Any = from_tasks("signals.task_finished")
TaskResultDoesNotExist: Any = from_tasks("exceptions.TaskResultDoesNotExist")
# The backport gives two of them other names, and their places differ.
_SUFFIX = "" if _IS_DJANGOS else "Error"
InvalidTask: Any = from_tasks(f"exceptions.InvalidTask{_SUFFIX}")
InvalidTaskBackend: Any = from_tasks(f"exceptions.InvalidTaskBackend{_SUFFIX}")
normalize_json: Any = (
    import_string("django.utils.json.normalize_json")
    if _IS_DJANGOS
    else from_tasks("utils.normalize_json")
)
