"""What other packages see of a command: toolbar, spans."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.tried.shop.models import Order

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_debug_toolbar_shows_the_statements_of_a_command(settings):
    """
    django-debug-toolbar: a view that dispatches is answered as without it, and the
    panel of statements counts those of the command.
    """
    settings.DEBUG = True

    response = Client(REMOTE_ADDR="127.0.0.1").get("/place/?order=3")

    assert response.status_code == 200
    assert Order.objects.get().order_id == 3
    assert "SQLPanel" in response.content.decode()
