"""The tasks of the tests: Django's own from 6.0 on, before that of its backport."""

from __future__ import annotations

import contextlib
import sys

from django.db import transaction

from django_cqrs.outbox.tasks.djangos import from_tasks
from tests.testapp.models import Note

task = from_tasks("task")

seen = []
"""What the tasks were called with, in order."""


@task
def noop(*args, **kwargs):
    seen.append((args, kwargs))


@task
async def anoop(*args, **kwargs):
    seen.append((args, kwargs))


@task
def note(number, text="write"):
    """Write a row, in the transaction that the task runs in."""
    Note.objects.create(text=text, number=number)
    return number


@task
def note_and_fail(number):
    Note.objects.create(text="lost", number=number)
    raise ValueError(f"no {number}")


@task
def answer():
    return 42


@task
def give_back(value):
    return value


unsupported = object()


@task
def give_unsupported():
    seen.append("called")
    Note.objects.create(text="lost", number=0)
    return unsupported


@task
def give_nan():
    return {"ratio": float("nan")}


@task
def fail():
    seen.append("called")
    raise ValueError("This task fails.")


@task
def fail_strangely():
    raise ValueError(ValueError("inside"))


@task
def leave():
    sys.exit("This task leaves.")


@task
def interrupt():
    raise KeyboardInterrupt


@task
def fail_once():
    seen.append("called")
    if len(seen) == 1:
        raise ValueError("the first time")
    return "done"


@task(takes_context=True)
def own_id(context):
    return context.task_result.id


@task(takes_context=True)
def attempts(context, number=0):
    result = context.task_result
    seen.append((context.attempt, result.status, len(result.errors)))
    if context.attempt < 3:
        raise ValueError("not yet")
    return context.attempt


@task
def is_in_transaction():
    return transaction.get_connection().in_atomic_block


@task
def commit_itself():
    """End the transaction that the worker opened: a fault of the task."""
    Note.objects.create(text="committed", number=1)
    with contextlib.suppress(Exception):
        transaction.commit()
    connection = transaction.get_connection()
    connection.connection.commit()


@task
def enqueue_other(number):
    result = noop.enqueue(number)
    seen.append(noop.get_result(result.id).status)
    return result.id


def not_a_task():
    """Only a function."""
