from __future__ import annotations

import os

import pytest

# These run by themselves, `make tried`: they need packages of their own, in versions of
# their own, and a PostgreSQL server.
collect_ignore_glob = [] if os.environ.get("CQRS_TRIED") == "1" else ["*.py"]


class _LeftOut(pytest.Module):
    """A module that needs other settings."""

    def collect(self):
        return []


def pytest_pycollect_makemodule(module_path, parent):
    """Leave modules out also where the command line names them."""
    if collect_ignore_glob:
        return _LeftOut.from_parent(parent, path=module_path)
    return None
