"""The suite's settings on PostgreSQL, with the packages that a project might have."""

from __future__ import annotations

import os

os.environ.setdefault(
    "DATABASE_URL", "postgres://postgres@127.0.0.1:5432/django_cqrs_tried"
)

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [
    "polymorphic",
    *INSTALLED_APPS,
    "debug_toolbar",
    "pgtrigger",
    "pghistory",
    "simple_history",
    "tests.tried.shop",
]
MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware", *MIDDLEWARE]
DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": "tests.tried.settings.show_toolbar"}
INTERNAL_IPS = ["127.0.0.1"]
ROOT_URLCONF = "tests.tried.urls"


def show_toolbar(request):
    return True
