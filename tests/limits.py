"""How long a test waits for what must happen: one limit, which a busy machine keeps."""

from __future__ import annotations

import os
from typing import Final

LIMIT: Final = float(os.environ.get("CQRS_TEST_LIMIT", "600"))
"""
Seconds after which what has not happened is taken for something that never will.

No test passes by waiting for it, so that a longer one costs nothing but where a test
fails. CQRS_TEST_LIMIT gives another one.
"""
