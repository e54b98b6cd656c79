"""Settings of the load test's server, which uses the database of the test's process."""

from __future__ import annotations

import os

from tests.settings import *  # noqa: F403 - all of them but these
from tests.settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.apps.load"]
MIDDLEWARE = ["django_cqrs.middleware.MessageHeadersMiddleware"]
ROOT_URLCONF = "tests.apps.load.urls"
ALLOWED_HOSTS = ["*"]
DJANGO_CQRS = {"REQUEST_HEADERS": "tests.apps.load.urls.headers_of"}

DATABASES["default"]["NAME"] = os.environ["CQRS_LOAD_DATABASE"]
if os.environ.get("CQRS_LOAD_POOL"):
    # What Django recommends under ASGI: requests wait for one of a few connections.
    DATABASES["default"]["OPTIONS"] = {
        "application_name": "cqrs_load",
        "pool": {"min_size": 1, "max_size": 20, "timeout": 60},
    }
elif DATABASES["default"]["ENGINE"].endswith("postgresql"):
    DATABASES["default"]["OPTIONS"] = {"application_name": "cqrs_load"}
