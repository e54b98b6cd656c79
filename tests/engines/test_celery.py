"""CeleryChannel: its options, its connection, its checks, and a broker that is away."""

import logging
import sys
import time

import celery
import kombu.utils.functional
import pytest
import redis.connection
from django.core.checks import run_checks

from django_cqrs.channels import channels
from django_cqrs.engines.celery import TASK_NAME, CeleryChannel
from django_cqrs.exceptions import InvalidChannel
from tests.engines import support
from tests.engines.support import (
    BROKER_URL,
    QUEUE,
    Proxy,
    channel,
    consume,
    forward,
    relay_of,
    states,
)
from tests.outbox.support import note, numbers, on_databases, registry_of, rows, send

pytestmark = on_databases

nobody = celery.Celery(
    "nobody", broker="redis://127.0.0.1:1/0", set_as_current=False, fixups=[]
)
by_routes = celery.Celery("routed", broker=BROKER_URL, set_as_current=False, fixups=[])
by_routes.conf.task_routes = {"django_cqrs.*": {"queue": QUEUE}}
eager = celery.Celery("eager", broker="memory://", set_as_current=False, fixups=[])
eager.conf.task_always_eager = True

needs_broker = pytest.mark.skipif(
    BROKER_URL.startswith("memory:"), reason="CELERY_BROKER_URL names no broker."
)


def reported():
    return [(each.id, each.msg, each.hint) for each in run_checks(tags=["django_cqrs"])]


def test_the_apps_routes_choose_the_queue(celery_engine, with_options):
    """Without a queue of its own the channel leaves that to Celery."""
    with_options(queue=None, app=f"{__name__}.by_routes")
    registry = registry_of(note)
    send(registry, 1)

    assert forward(registry) == 1
    consume(celery_engine, registry)

    assert numbers() == [1]


def test_without_celery(settings, monkeypatch):
    """The channel cannot be made, and its error names the extra."""
    monkeypatch.setitem(sys.modules, "celery", None)
    monkeypatch.delitem(sys.modules, "django_cqrs.engines.celery")
    backend = "django_cqrs.engines.celery.CeleryChannel"
    settings.DJANGO_CQRS = {"CHANNELS": {"mail": {"BACKEND": backend}}}

    with pytest.raises(InvalidChannel) as caught:
        channels["mail"]

    assert str(caught.value) == (
        "The channel 'mail' has a BACKEND that cannot be imported: import of celery "
        "halted; None in sys.modules; pip install 'django-cqrs-kit[celery]' installs "
        "Celery."
    )


def test_every_app_has_the_task():
    """A Celery app made later has it too: no user names it anywhere."""
    app = celery.Celery("later", set_as_current=False, fixups=[])

    task = app.tasks[TASK_NAME]

    assert task.name == "django_cqrs.handle"
    assert task.ignore_result is True


def test_an_eager_app_handles_in_the_relay(celery_engine, with_options):
    """CELERY_TASK_ALWAYS_EAGER, as some projects develop with, is heeded."""
    with_options(app=f"{__name__}.eager")
    registry = registry_of(note)
    send(registry, 1)
    handled = []
    celery.signals.task_success.connect(lambda **_: handled.append(1), weak=False)

    assert forward(registry) == 1

    assert handled == [1]
    assert [letter.reason for letter in dead()] == ["unknown_endpoint"]


def dead():
    """The task knows the project's handlers alone, and not those of a test."""
    from tests.outbox.support import letters

    return letters()


def test_one_connection_for_all(celery_engine, monkeypatch):
    """It stays open from one forwarding to the next, and ends with the relay."""
    made = []
    connect = CeleryChannel._connection  # Celery makes others that it never opens

    def count(self):
        made.append(connect(self))
        return made[-1]

    monkeypatch.setattr(CeleryChannel, "_connection", count)
    registry = registry_of(note)
    relay = relay_of(registry)
    for number in range(3):
        send(registry, number)
        assert relay.run_once() == 1
    assert len(made) == 1

    monkeypatch.setattr(CeleryChannel, "idle_time", 0.0)
    send(registry, 3)
    assert relay.run_once() == 1  # one that was idle may be dead
    assert len(made) == 2

    relay.run()
    assert [each.connected for each in made] == [False, False]


def test_a_broker_that_is_not_there(celery_engine, with_options, caplog, monkeypatch):
    """Sending works, the relay ends in peace, and the messages are where they were. [C08.2]"""
    with_options(app=f"{__name__}.nobody")
    registry = registry_of(note)
    send(registry, 1, 2)
    calls, pauses = [], []
    connect = redis.connection.Connection._connect

    def counted(connection):
        calls.append(connection)
        return connect(connection)

    with caplog.at_level(logging.ERROR), monkeypatch.context() as patch:
        patch.setattr(redis.connection.Connection, "_connect", counted)
        patch.setattr(kombu.utils.functional, "sleep", pauses.append)
        assert forward(registry) == 0
    assert len(calls) == 2  # asked once more, and not until it is back
    assert sum(pauses) == 0

    assert states() == [0, 0]
    [record] = caplog.records
    assert "2 messages could not be forwarded; nothing is lost" in record.getMessage()
    assert "Connection refused" in record.exc_text or str(record.exc_info[1])

    with_options(app="tests.engines.support.app")
    assert forward(registry) == 2
    consume(celery_engine, registry)
    assert numbers() == [1, 2]


@needs_broker
def test_a_broker_whose_connection_breaks(celery_engine, with_options):
    """What it did not take is taken by the next connection. [C08.2]"""
    proxy = Proxy(BROKER_URL)
    through.conf.broker_url = proxy.url
    with_options(app=f"{__name__}.through")
    registry = registry_of(note)
    proxy.start()
    relay = relay_of(registry)
    try:
        send(registry, 1)
        assert relay.run_once() == 1
        proxy.stop()
        send(registry, 2, 3)
        assert relay.run_once() == 0
        assert len(rows()) == 3
        proxy.start()
        time.sleep(0.2)
        assert relay.run_once() == 2
    finally:
        proxy.stop()
        relay.relays["outbox"].close()
    consume(celery_engine, registry)
    assert numbers() == [1, 2, 3]


through = celery.Celery("through", set_as_current=False, fixups=[])


# Options and checks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["queue", "app"])
@pytest.mark.parametrize("value", [1, "", ["mail"]])
def test_an_option_that_is_no_text(celery_engine, with_options, name, value):
    """It is refused with its name and its value."""
    with_options(**{name: value})

    with pytest.raises(InvalidChannel) as caught:
        channel()

    assert str(caught.value) == (
        f"Channel 'outbox' cannot be created: the option {name!r} is {value!r}, which "
        "is not text."
    )
    with_options(**{name: "x"})


def test_django_cqrs_engines_e001_an_app_that_is_none(celery_engine, with_options):
    """A path that leads nowhere, or to something else."""
    hint = 'Name the Celery app: "OPTIONS": {"app": "shop.celery.app"}.'
    with_options(app="tests.engines.nowhere")
    assert reported() == [
        (
            "django_cqrs_engines.E001",
            (
                "The channel 'outbox' has the app 'tests.engines.nowhere', which "
                'cannot be imported: Module "tests.engines" does not define a '
                '"nowhere" attribute/class.'
            ),
            hint,
        )
    ]
    with_options(app="tests.engines.support.QUEUE")
    assert reported() == [
        (
            "django_cqrs_engines.E001",
            (
                "The channel 'outbox' has the app 'tests.engines.support.QUEUE', "
                "which is not a Celery app."
            ),
            hint,
        )
    ]


def test_django_cqrs_engines_w001_no_app(celery_engine, with_options, monkeypatch):
    """Celery would make one up, for a broker that is not the project's."""
    with_options(app=None)
    assert celery.current_app.main == "default"
    assert reported() == [
        (
            "django_cqrs_engines.W001",
            "The channel 'outbox' cannot find the project's Celery app.",
            (
                "Import it in the project's package, as Celery's documentation "
                'describes, or name it: "OPTIONS": {"app": "shop.celery.app"}.'
            ),
        )
    ]

    with_options(app="tests.engines.support.app")
    assert reported() == []
    assert channels["outbox"].app is support.app


@pytest.mark.parametrize(
    ("broker", "confirms"),
    [
        ("amqp://127.0.0.1:1//", True),
        ("pyamqp://127.0.0.1:1//", True),
        ("redis://127.0.0.1:1/0", False),
        ("memory://", False),
        ("filesystem://", False),
    ],
)
def test_only_a_transport_that_knows_it_is_asked_to_confirm(
    celery_engine, with_options, monkeypatch, broker, confirms
):
    """Others may refuse an option of another transport: nothing would be forwarded."""
    app = celery.Celery("asked", broker=broker, set_as_current=False, fixups=[])
    app.conf.broker_transport_options = {"visibility_timeout": 60}
    monkeypatch.setitem(globals(), "asked", app)
    with_options(queue=None, app=f"{__name__}.asked")

    options = channel()._connection().transport_options

    wanted = {"visibility_timeout": 60}
    assert options == ({**wanted, "confirm_publish": True} if confirms else wanted)


def test_a_broker_of_files_is_given_the_tasks(
    celery_engine, with_options, monkeypatch, tmp_path
):
    """A virtual transport without confirmations takes what is forwarded."""
    app = celery.Celery(
        "files", broker="filesystem://", set_as_current=False, fixups=[]
    )
    folder = str(tmp_path)
    app.conf.broker_transport_options = {
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": str(tmp_path / "control"),
    }
    monkeypatch.setitem(globals(), "files", app)
    with_options(queue=None, app=f"{__name__}.files")
    registry = registry_of(note)
    send(registry, 1)

    assert forward(registry) == 1
    assert [each.suffix for each in tmp_path.iterdir() if each.is_file()] == [".msg"]
