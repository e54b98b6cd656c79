"""The views and the server of the load test."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import path

from django_cqrs import command_bus, query_bus
from django_cqrs.views import CommandView
from tests.apps.load.handlers import Refused
from tests.apps.load.messages import ARecord, Count, Record


def headers_of(request: HttpRequest) -> dict[str, str]:
    return {"request": request.headers.get("X-Request", "none")}


async def record(request: HttpRequest, number: int, kind: str) -> JsonResponse:
    message: Any = {"sync": Record, "async": ARecord}[kind]
    try:
        result = await command_bus.adispatch(message(number, "fails" in request.GET))
    except Refused:
        return JsonResponse({"refused": True}, status=409)
    return JsonResponse({"result": result})


async def count(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"result": await query_bus.aask(Count())})


urlpatterns = [
    path("record/<int:number>/<str:kind>", record),
    path(
        "post/<int:number>",
        CommandView.as_view(message=Record, errors={Refused: 409}),
    ),
    path("count", count),
]
