"""The example's whole story on each engine: only `CHANNELS` is another."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.engines.support import BROKER_URL, Proxy, app
from tests.example.shop import PROJECT, environment
from tests.limits import LIMIT

pytestmark = [pytest.mark.database, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """
import os
try:
    import pymysql
except ImportError:
    pass
else:
    pymysql.install_as_MySQLdb()
from config.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks_db"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": ["mail"]}}
CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
DJANGO_CQRS["CHANNELS"]["mail"] = CHANNELS[os.environ["SHOP_ENGINE"]]
if post := os.environ.get("SHOP_POST_OFFICE"):
    MAILERS = {"default": {"BACKEND": post}}
    if django.VERSION < (6, 1):
        EMAIL_BACKEND = post
        del MAILERS
"""

# What a Celery project in Django has anyway, word for word from Celery's documentation.
CELERY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
INIT = """
from .celery import app as celery_app

__all__ = ("celery_app",)
"""

# The part of the settings that a user changes.
QUEUE = f"mail-{uuid.uuid4().hex[:8]}"
CHANNELS = {
    "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
    "celery": {
        "BACKEND": "django_cqrs.engines.celery.CeleryChannel",
        "OPTIONS": {"queue": QUEUE, "lease": 2},
    },
    "tasks": {
        "BACKEND": "django_cqrs.engines.tasks.TasksChannel",
        "OPTIONS": {"queue": "mail", "lease": 2},
    },
}
WORKERS = {
    "outbox": [],
    "celery": [
        *("celery", "--app", "shop", "worker", "--queues", QUEUE),
        *("--concurrency", "2", "--loglevel", "INFO"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ],
    "tasks": ["manage", "db_worker", "--queue-name", "mail", "--interval", "0.1"],
}

needs_broker = pytest.mark.skipif(
    BROKER_URL.startswith("memory:"), reason="CELERY_BROKER_URL names no broker."
)


class EngineShop:
    """The example project, with an engine behind its channel."""

    def __init__(self, folder, url):
        self.folder = folder
        package = folder / "shop"
        package.mkdir()
        (package / "__init__.py").write_text(INIT)
        (package / "celery.py").write_text(CELERY)
        (package / "settings.py").write_text(f"CHANNELS = {CHANNELS!r}\n{SETTINGS}")
        self.env = environment(
            DATABASE_URL=url,
            DEBUG="False",
            SECRET_KEY="a key for tests",
            DJANGO_SETTINGS_MODULE="shop.settings",
            PYTHONPATH=os.pathsep.join(map(str, (folder, PROJECT, ROOT))),
            CELERY_BROKER_URL=BROKER_URL,
        )

    def command(self, name, *arguments):
        if name == "manage":
            return [sys.executable, str(PROJECT / "manage.py"), *arguments]
        return [sys.executable, "-m", name, *arguments]

    def run(self, *command, engine="outbox", **env):
        done = subprocess.run(
            self.command(*command),
            env={**self.env, "SHOP_ENGINE": engine, **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def story(self, *steps, engine, **env):
        """Run steps of the story; return what the last one has seen."""
        return json.loads(self.run("tests.engines.story", *steps, engine=engine, **env))

    @contextlib.contextmanager
    def running(self, *command, engine, ready, **env):
        """Run a worker beside the story; what it said is shown where that fails."""
        log = self.folder / f"{uuid.uuid4().hex}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                self.command(*command),
                env={**self.env, "SHOP_ENGINE": engine, **env},
                cwd=self.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        process.log = log
        try:
            end = time.monotonic() + LIMIT
            while ready not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield process
        except BaseException:
            print(command, log.read_text())
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def relay(self, engine, **env):
        verb = "Handling" if engine == "outbox" else "Forwarding"
        command = ("manage", "cqrs_worker", "mail")
        return self.running(*command, engine=engine, ready=f"{verb} mail", **env)

    @contextlib.contextmanager
    def worker(self, engine, **env):
        if not WORKERS[engine]:
            yield None
            return
        ready = {"celery": "ready.", "tasks": "Starting worker"}[engine]
        with self.running(*WORKERS[engine], engine=engine, ready=ready, **env) as found:
            yield found


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    with database(folder) as url:
        shop = EngineShop(folder, url)
        shop.run("manage", "migrate", "--verbosity", "0")
        yield shop
    if not BROKER_URL.startswith("memory:"):
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(QUEUE)


@contextlib.contextmanager
def database(folder):
    """Make a database for the shop, on the server of the tests."""
    url = os.environ.get("DATABASE_URL", "")
    name = f"shop_{os.getpid()}"
    if url.startswith("postgres"):
        import psycopg

        with psycopg.connect(
            url.rpartition("/")[0] + "/postgres", autocommit=True
        ) as db:
            db.execute(f"CREATE DATABASE {name}")
            try:
                yield f"{url.rpartition('/')[0]}/{name}"
            finally:
                db.execute(f"DROP DATABASE {name} WITH (FORCE)")
    elif url.startswith(("mysql", "mariadb")):
        import environ
        import pymysql

        config = environ.Env.db_url_config(url)
        db = pymysql.connect(
            host=config["HOST"],
            port=int(config["PORT"] or 3306),
            user=config["USER"],
            password=config["PASSWORD"],
            autocommit=True,
        )
        with db, db.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
            try:
                yield f"{url.rpartition('/')[0]}/{name}"
            finally:
                cursor.execute(f"DROP DATABASE {name}")
    else:
        yield f"sqlite:///{folder / 'shop.sqlite3'}"


TOLD = [
    {
        "orders": ["A-1"],
        "invoices": ["A-1"],
        "letters": ["Your order A-1"],
        "dead": [],
        "waiting": 0,
    },
    "refused",
    {
        "orders": ["A-1", "A-3"],
        "invoices": ["A-1", "A-3"],
        "letters": ["Your order A-1"],
        "dead": [
            [
                "office.send_confirmation",
                2,
                "failed",
                "the mailbox of samuel.weiss@mail.example is full",
            ]
        ],
        "waiting": 0,
    },
    {
        "orders": ["A-1", "A-3"],
        "invoices": ["A-1", "A-3"],
        "letters": ["Your order A-1", "Your order A-3"],
        "dead": [],
        "waiting": 0,
    },
]


@pytest.mark.parametrize(
    "engine", ["outbox", pytest.param("celery", marks=needs_broker), "tasks"]
)
def test_the_whole_story(shop, engine):
    """An order, its invoice and letter in the background, a failure, a dead letter, a
    replay: the same on every engine, with its real workers. [C08.1]"""
    with shop.relay(engine), shop.worker(engine):
        assert shop.story("clear", "tell", engine=engine) == TOLD


@needs_broker
def test_the_broker_goes_away_and_comes_back(shop):
    """Orders are placed meanwhile, the relay lives on, and nothing is lost. [C08.2]"""
    proxy = Proxy(BROKER_URL)
    env = {"CELERY_BROKER_URL": proxy.url}
    with shop.relay("celery", **env) as relay:
        shop.story("clear", "place=B-1", "written", engine="celery", **env)
        wait_for_text(relay, "could not be forwarded; nothing is lost")
        proxy.start()
        try:
            with shop.worker("celery"):
                shop.story("place=B-2", "many=5", engine="celery", **env)
                proxy.stop()
                before = relay.log.read_text().count("nothing is lost")
                shop.story("place=B-3", engine="celery", **env)
                wait_for_text(relay, "nothing is lost", more_than=before)
                proxy.start()
                seen = shop.story("many=0", engine="celery", **env)
        finally:
            proxy.stop()
        assert relay.poll() is None
    wanted = ["B-1", "B-2", "B-3", *(f"N-{number}" for number in range(5))]
    assert seen["orders"] == seen["invoices"] == wanted
    assert seen["letters"] == [f"Your order {reference}" for reference in wanted]
    assert (seen["dead"], seen["waiting"]) == ([], 0)


@needs_broker
def test_a_broker_that_is_flushed_after_the_forward(shop):
    """Nobody has handled what it had; the relay forwards it again when the lease ends. [C08.3]"""
    with shop.relay("celery"):
        shop.story("clear", "place=C-1", "place=C-2", "written", engine="celery")
        time.sleep(0.5)
        with app.connection_for_write() as connection:
            if BROKER_URL.startswith("redis"):
                client = connection.default_channel.client
                assert client.llen(QUEUE)
                client.flushdb()  # a FLUSHALL of what is ours
            else:
                assert connection.default_channel.queue_purge(QUEUE)
        with shop.worker("celery"):
            seen = shop.story("many=0", engine="celery")
    assert seen["orders"] == seen["invoices"] == ["C-1", "C-2"]
    assert seen["letters"] == ["Your order C-1", "Your order C-2"]
    assert (seen["dead"], seen["waiting"]) == ([], 0)


@needs_broker
def test_a_message_that_kills_its_celery_worker(shop):
    """It dies of SIGKILL; the others' work is done, and the killer a dead letter. [C08.1]"""
    env = {"SHOP_POST_OFFICE": "tests.engines.deadly.PostOffice"}
    with shop.relay("celery"), shop.worker("celery", **env) as worker:
        seen = shop.story("clear", "poison=D-1", engine="celery")
        assert "WorkerLostError" in worker.log.read_text()
    assert seen == {
        "orders": ["D-1"],
        "invoices": ["D-1"],
        "letters": [],
        "dead": [
            [
                "office.send_confirmation",
                2,
                "poison",
                "Every worker that tried to handle this message crashed.",
            ]
        ],
        "waiting": 0,
    }


def wait_for_text(process, text, *, more_than=0):
    end = time.monotonic() + LIMIT
    while process.log.read_text().count(text) <= more_than:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
