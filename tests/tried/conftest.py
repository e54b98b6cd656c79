from __future__ import annotations

import os

# These run by themselves, `make tried`: they need packages of their own, in versions of
# their own, and a PostgreSQL server.
collect_ignore_glob = [] if os.environ.get("CQRS_TRIED") == "1" else ["*.py"]
