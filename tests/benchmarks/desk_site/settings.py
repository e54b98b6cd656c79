"""Settings of the project; the environment names its database."""

from __future__ import annotations

import json
import os

DATABASES = {"default": json.loads(os.environ["BENCHMARKS_DATABASE"])}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_cqrs",
    "django_cqrs.outbox",
]
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
ROOT_URLCONF = "tests.benchmarks.desk_site.urls"
STATIC_URL = "static/"

OUTBOX = {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
DJANGO_CQRS = {
    "CHANNELS": dict.fromkeys(("orders", "mail", "reports"), OUTBOX),
    "JOURNAL": 30 * 24 * 3600,
}
ALLOWED_HOSTS = ["testserver"]
DEBUG = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "benchmarks"
USE_TZ = True
