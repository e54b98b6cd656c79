from __future__ import annotations

from django.apps import AppConfig


class QueuebieShopConfig(AppConfig):
    name = "tests.benchmarks.queuebie_shop"
    label = "benchmarks_queuebie_shop"
