"""What every message of a web request carries with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.http import HttpRequest


def request_headers(request: HttpRequest) -> dict[str, str]:
    """Say who is asking; handlers read it as ``Header("executor_id")``."""
    user = request.user
    return {"executor_id": user.get_username() or "anonymous"}
