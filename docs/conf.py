"""Sphinx: `make docs`. Nothing here needs the network."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

import django
from django.conf import settings
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

# Autodoc imports the package as a project would.
settings.configure(INSTALLED_APPS=["django_cqrs", "django_cqrs.outbox"])
django.setup()

project = "django_cqrs"
author = "django_cqrs contributors"
project_copyright = author
release = version_of("django-cqrs-kit")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
# A name in docstrings is code, as it is in Python.
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# Names and defaults: prose says the types, and overloads are for type checkers.
autodoc_typehints = "none"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 78
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Names of Python, Django and asgiref: their inventories are on the network.
_elsewhere = (
    "abc|asgiref|builtins|collections|contextlib|datetime|decimal|django"
    "|enum|fnmatch|pathlib|types|typing|uuid"
)
nitpick_ignore_regex = [("py:.*", rf"({_elsewhere})\..*")]

html_theme = "furo"
html_title = f"django_cqrs {release}"
html_static_path = ["_static"]
html_css_files = ["django_cqrs.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False

# Prompts are shown and not copied, nor is what a command prints.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def _returns_prose(*args: Any) -> None:
    """Keep napoleon from taking what stands before a colon for a type."""
    lines: list[str] = args[-1]
    if "Returns:" in lines:
        start = lines.index("Returns:")
        lines[start : start + 2] = [f":returns: {lines[start + 1].strip()}"]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _returns_prose, priority=400)
    # Shown as text here, drawn where a page is read on its own.
    app.add_lexer("mermaid", TextLexer)
