"""The view of outcomes as an operation of an OpenAPI document."""

from __future__ import annotations

from typing import Any

from django_cqrs.conversion.payloads import JSON
from django_cqrs.openapi.paths import PathTemplate
from django_cqrs.views.problem_details import PROBLEM_JSON


def outcome_operation(
    template: PathTemplate, operation_id: str, problem: dict[str, Any]
) -> dict[str, Any]:
    """
    Return the operation of an ``OutcomeView``.

    Args:
        template: its path.
        operation_id: its unique id.
        problem: the schema of problem details.

    """
    from django_cqrs.outbox.outcomes import MessageStatus

    moment = {"type": ["string", "null"], "format": "date-time"}
    known = [str(each) for each in MessageStatus if each is not MessageStatus.UNKNOWN]
    outcome = {
        "type": "object",
        "required": ["message_id", "status", "attempts", "at", "next_attempt_at"],
        "properties": {
            "message_id": {"type": "string", "format": "uuid"},
            "status": {"type": "string", "enum": known},
            "attempts": {"type": "integer"},
            "at": moment,
            "next_attempt_at": moment,
        },
    }
    return {
        "operationId": operation_id,
        "summary": "Tell what became of a command.",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": schema}
            for name, schema in template.parameters.items()
        ],
        "responses": {
            "200": {
                "description": "What became of the command.",
                "content": {JSON: {"schema": outcome}},
            },
            "404": {
                "description": "Nothing is known of this message.",
                "content": {PROBLEM_JSON: {"schema": problem}},
            },
        },
    }
