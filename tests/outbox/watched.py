"""A process under the eyes of Sentry and OpenTelemetry, both at their defaults."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from django_cqrs import Registry, Sensitive, command_handler, message

# Its first word cannot be part of an id or of a time.
SECRET = "4111-2222-3333 & <1111>"

registry = Registry()


@message("watched.pay")
@dataclass(frozen=True)
class Pay:
    card: Annotated[str, Sensitive()]


@registry.add
@command_handler(name="watched.pay", channel="outbox")
def pay(command: Pay) -> None:
    pass


WAYS = {
    "one plain message": (1, {}, {}, {}),
    "one with headers": (1, {"card": SECRET}, {}, {}),
    "one with a delay": (1, {}, {"delay": 60}, {}),
    "several in one statement": (3, {"card": SECRET}, {"delay": 60}, {}),
    "parameters bound by the server": (
        1,
        {"card": SECRET},
        {},
        {"server_side_binding": True},
    ),
}
"""How many are sent, with which headers, which options of the call and of the server."""


def main():
    """Send in each way, and print all that the two tools let out of it."""
    import django
    import sentry_sdk
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )
    from sentry_sdk.transport import Transport

    envelopes = []

    class Kept(Transport):
        def capture_envelope(self, envelope):
            envelopes.append(envelope)

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    PsycopgInstrumentor().instrument(tracer_provider=provider)
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, transport=Kept
    )
    django.setup()

    from django.db import connection
    from django.db.transaction import atomic

    texts = {}
    for way, (count, headers, call, options) in WAYS.items():
        exporter.clear()
        envelopes.clear()
        connection.close()
        if connection.vendor == "postgresql":
            connection.settings_dict["OPTIONS"] = options
        with sentry_sdk.start_transaction(op="task", name="pay"):
            with atomic():
                for _ in range(count):
                    registry.command_bus.dispatch(Pay(SECRET), headers=headers, **call)
            # An error report carries the statements before it.
            sentry_sdk.capture_message("refused", level="error")
        texts[way] = [
            f"sentry {item.type} {item.payload.get_bytes().decode()}"
            for envelope in envelopes
            for item in envelope.items
        ]
        texts[way] += [
            f"span {each.to_json()}" for each in exporter.get_finished_spans()
        ]
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
