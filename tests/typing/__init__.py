"""
What type checkers are to infer and to report: read by them, never run.

A wrong use has a comment that ignores its error. An ignored error that is not there
is itself reported, by mypy's ``warn_unused_ignores`` and by pyright's
``reportUnnecessaryTypeIgnoreComment``: so a mistake that goes unnoticed fails.
"""
