from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "tests.benchmarks.shop"
    label = "benchmarks_shop"
