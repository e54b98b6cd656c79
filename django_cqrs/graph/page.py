"""The message graph as an HTML page without a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from django.template import Context, Engine

from django_cqrs.graph.graph import Graph
from django_cqrs.graph.mermaid import mermaid_of
from django_cqrs.graph.rows import observed_text, sections_of, unknown_text

_TEMPLATES: Final = Path(__file__).parents[1] / "templates"


def context_of(graph: Graph) -> dict[str, Any]:
    """Return the context of the template ``django_cqrs/graph.html``, and notes."""
    observed = [] if graph.observed is None else observed_text(graph.observed)
    return {
        "sections": sections_of(graph),
        "mermaid": mermaid_of(graph),
        "notes": [*observed, *filter(None, [unknown_text(graph)])],
    }


def page_of(graph: Graph, title: str) -> str:
    """Return a page of its own, whatever templates the project has."""
    engine = Engine(
        dirs=[str(_TEMPLATES)], libraries={"i18n": "django.templatetags.i18n"}
    )
    context = Context({"title": title, **context_of(graph)})
    return engine.get_template("django_cqrs/graph_page.html").render(context)
