from __future__ import annotations

from django.apps import AppConfig


class ModellingConfig(AppConfig):
    name = "tests.modelling"
    label = "modelling"
    default_auto_field = "django.db.models.BigAutoField"
