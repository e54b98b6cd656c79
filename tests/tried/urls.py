from __future__ import annotations

from debug_toolbar.toolbar import debug_toolbar_urls
from django.http import HttpResponse
from django.urls import path

from django_cqrs import command_bus
from tests.tried.shop.models import PlaceOrder


def place(request):
    order_id = command_bus.dispatch(PlaceOrder(int(request.GET["order"])))
    return HttpResponse(f"<html><body>{order_id}</body></html>")


urlpatterns = [path("place/", place), *debug_toolbar_urls()]
