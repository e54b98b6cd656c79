"""
Runs Python in a fork of a process that has imported the libraries already.

    python forks.py serve HANDLE            on a listening socket, until its input ends
    python -I -S forks.py run ADDRESS ...   what `python -W error ...` would run

The pages start Python some hundred times, and most of that time would go by with the
same imports. A fork is a process of its own, with the folder, the environment and the
files of the one that asked for it; it differs from a new one in nothing but what
`LIBRARIES` has brought along. Of ours that is what every project imports when it
starts; it is imported by new processes in the tutorial, which has an environment of its
own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import types
from typing import Any, NoReturn

LIBRARIES = (
    "django.contrib.admin",
    "django.contrib.admin.templatetags.admin_list",
    "django.contrib.messages.middleware",
    "django.contrib.sessions.middleware",
    "django.contrib.staticfiles.finders",
    "django.contrib.staticfiles.handlers",
    "django.core.management.commands.check",
    "django.core.management.commands.migrate",
    "django.core.servers.basehttp",
    "django.db.backends.sqlite3.base",
    "django.template.backends.django",
    "django.views.debug",
    "django_cqrs",
    "django_cqrs.checks",
    "django_cqrs.management.commands.cqrs_routes",
    "django_cqrs.views",
    "doctest",
    "pydantic",
    "sqlparse",
)
"""What is imported once; none of it may read settings, for there are none."""

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def serve(handle: int) -> dict[str, Any]:
    """Fork for whoever asks; return, in the fork, what it is to run."""
    import gc
    import select
    import threading

    for name in LIBRARIES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "A thread is lost in a fork."
    gc.collect()
    gc.freeze()
    listener = socket.socket(fileno=handle)
    while True:
        ready, _, _ = select.select([listener, sys.stdin.fileno()], [], [])
        if listener not in ready:
            os._exit(0)  # whoever has started this is gone
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return look_after(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def look_after(connection: socket.socket) -> dict[str, Any]:
    """Fork once more and wait for it; return, in that fork, what it is to run."""
    import threading

    size, handles, _, _ = socket.recv_fds(connection, 8, 3)
    order: dict[str, Any] = json.loads(
        connection.recv(int(size), socket.MSG_WAITALL).decode()
    )
    pid = os.fork()
    if pid == 0:
        connection.close()
        for target, handle in enumerate(handles):
            os.dup2(handle, target)
            os.close(handle)
        return order
    for handle in handles:
        os.close(handle)

    def pass_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            while number := connection.recv(1):
                os.kill(pid, number[0])
            os.kill(pid, signal.SIGKILL)  # nobody waits for it now

    threading.Thread(target=pass_on, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def run(folder: str, environment: dict[str, str], arguments: list[str]) -> None:
    """Do what a new interpreter does with its command line."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, "-W", "error", *arguments]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    # The first place of the path is that of this script.
    try:
        if arguments[0] == "-m":
            sys.path[0] = folder
            sys.argv = arguments[1:]
            runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
            return
        path = os.path.abspath(arguments[0])  # noqa: PTH100 - links stay what they are
        sys.path[0] = os.path.dirname(os.path.realpath(path))  # noqa: PTH120
        sys.argv = arguments
        main.__file__ = path
        with open(path, "rb") as file:  # noqa: PTH123
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except Exception as error:  # noqa: BLE001 - the interpreter shows any
        # Without the frame of this function, which a new process would not have.
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error.with_traceback(inner), inner)
        sys.exit(1)


def ask(address: str, arguments: list[str]) -> NoReturn:
    """Have a fork run what this process was started for, and end as it does."""
    order = {
        "folder": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "arguments": arguments,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        text = json.dumps(order).encode()
        socket.send_fds(connection, [f"{len(text):8}".encode()], [0, 1, 2])
        connection.sendall(text)
        for each in PASSED_ON:
            signal.signal(each, lambda number, _: connection.sendall(bytes([number])))
        answer = connection.recv(16)
    if not answer:
        sys.exit("What was started is gone.")
    status = int(answer)
    if status < 0:
        with contextlib.suppress(OSError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        ask(sys.argv[2], sys.argv[3:])
    run(**serve(int(sys.argv[2])))
