from __future__ import annotations

import pytest


@pytest.fixture
def say(capsys):
    """Print a line that is seen whether or not the test fails: sizes and figures."""

    def say(text):
        with capsys.disabled():
            print(f"\n  {text}", flush=True)

    return say
