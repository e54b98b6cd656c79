"""Settings of the test suite: SQLite, or the server that DATABASE_URL names."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import environ

env = environ.Env()


def database(url: str, *, alias: str) -> dict[str, Any]:
    """Return the settings of one alias; each alias is a database of its own."""
    config: dict[str, Any] = environ.Env.db_url_config(url)
    if config["ENGINE"] == "django.db.backends.sqlite3":
        # Threads of one test share a file; they could not share a memory database.
        name = f"django_cqrs-{os.getpid()}-{alias}.sqlite3"
        config["TEST"] = {"NAME": str(Path(tempfile.gettempdir()) / name)}
        config["OPTIONS"] = {
            # Take the write lock at BEGIN: an upgrade from a read lock cannot wait.
            "transaction_mode": "IMMEDIATE",
            # Nobody reads a test database after a power cut.
            "init_command": "PRAGMA synchronous = OFF;",
            "timeout": 20,
        }
    elif alias != "default":
        config["NAME"] = f"{config['NAME']}_{alias}"
    if config["ENGINE"] == "django.db.backends.postgresql":
        # A COMMIT is answered before it is on the disk, for the same reason.
        config["OPTIONS"] = {"options": "-c synchronous_commit=off"}
    return config


DATABASE_URL = env.str("DATABASE_URL", default="sqlite://:memory:")

if DATABASE_URL.startswith(("mysql:", "mariadb:")):
    import pymysql

    pymysql.install_as_MySQLdb()

DATABASES = {
    "default": database(DATABASE_URL, alias="default"),
    "other": database(DATABASE_URL, alias="other"),
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django_cqrs",
    "django_cqrs.documents",
    "django_cqrs.events",
    "django_cqrs.outbox",
    "django_cqrs.schedules",
    "django_tasks_db",
    "tests.events.views",
    "tests.modelling",
    "tests.testapp",
]

DJANGO_CQRS = {
    "CHANNELS": {
        "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
        "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
    }
}

TASKS = {
    "default": {
        "BACKEND": "django_tasks_db.DatabaseBackend",
        "QUEUES": ["default", "mail"],
    }
}

# What the admin needs.
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
STATIC_URL = "static/"

ALLOWED_HOSTS = ["testserver"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ROOT_URLCONF = "tests.urls"
SECRET_KEY = "tests"
TIME_ZONE = "UTC"
USE_TZ = True
