"""The settings of the tests, with handlers that every process finds by itself."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.apps.supervised"]

# The database of a test alone: what belongs to the other alias is not named after it.
DATABASES = {"default": DATABASES["default"]}
