"""
Settings of the example shop.

Everything that differs between two machines comes from the environment, or from
the file ``.env`` beside ``manage.py``; ``.env.example`` lists it all. Without
either the shop runs on SQLite.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path

import django
import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env(
    DEBUG=(bool, True),
    SECRET_KEY=(str, "insecure-example-key"),
    ALLOWED_HOSTS=(list, ["localhost", "127.0.0.1", "[::1]"]),
    DATABASE_URL=(str, "sqlite:///db.sqlite3"),
    PAYMENT_HOURS=(float, 72),
)
if (BASE_DIR / ".env").is_file():
    env.read_env(BASE_DIR / ".env")

DEBUG = env("DEBUG")
SECRET_KEY = env("SECRET_KEY")
ALLOWED_HOSTS = env("ALLOWED_HOSTS")

if not DEBUG and SECRET_KEY.startswith("insecure"):
    raise ImproperlyConfigured("Set SECRET_KEY to a secret of your own: DEBUG is off.")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_cqrs",
    "django_cqrs.outbox",
    "django_cqrs.events",
    "django_cqrs.schedules",
    "orders",
    "stock",
    "payments",
    "shipping",
    "fulfilment",
    "audit",
    "office",
    "sales",
    "storefront",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # After authentication: the headers name the user.
    "django_cqrs.middleware.MessageHeadersMiddleware",
]

DJANGO_CQRS = {
    "CHANNELS": {
        # Rows beside the orders; `manage.py cqrs_worker mail` handles them.
        "mail": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
        # What is to be done later: `manage.py cqrs_worker timers` does it when due.
        "timers": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
        # Views that follow the stored events: `manage.py cqrs_worker views`.
        "views": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
    },
    "REQUEST_HEADERS": "config.headers.request_headers",
    # What came of each message, for the timelines in the admin.
    "JOURNAL": timedelta(days=30),
}

# How long an order waits for its money.
PAYMENT_TIME = timedelta(hours=env("PAYMENT_HOURS"))

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

with warnings.catch_warnings():
    # What is wrong with an address is said below: an address may have a password in it.
    warnings.simplefilter("ignore")
    try:
        DATABASES = {"default": env.db("DATABASE_URL")}
    except ValueError:  # of a port, say
        DATABASES = {"default": {}}
if DATABASES["default"].get("ENGINE") not in env.DB_SCHEMES.values():
    raise ImproperlyConfigured(
        "DATABASE_URL is not the address of a database. Write, for example, "
        "sqlite:///db.sqlite3 or postgres://user:password@127.0.0.1:5432/shop."
    )

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    database = DATABASES["default"]
    if database["NAME"] != ":memory:":
        # A relative path means the same file whatever the current directory.
        database["NAME"] = BASE_DIR / database["NAME"]
    # Readers and one writer at a time get on together; a writer waits for its turn.
    database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        **database.get("OPTIONS", {}),
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

POST_OFFICE = "office.postoffice.PostOffice"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": POST_OFFICE}}
else:
    EMAIL_BACKEND = POST_OFFICE
DEFAULT_FROM_EMAIL = "shop@kettle-and-leaf.example"

STATIC_URL = "static/"

LOGIN_URL = "admin:login"
