"""An app of its own, so that the projections of tests are in no installed app."""

from django.apps import AppConfig


class ViewsConfig(AppConfig):
    """The views of the projections that the tests declare."""

    name = "tests.events.views"
    label = "projections"
