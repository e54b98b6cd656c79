"""The storefront app."""

from __future__ import annotations

from django.apps import AppConfig


class StorefrontConfig(AppConfig):
    """The pages of the shop, its demonstration and its order book."""

    name = "storefront"
