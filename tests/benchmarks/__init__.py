"""
How long a message takes, beside what a project would use instead.

Run with ``make bench``. Nothing here is a test: times belong to a quiet machine.
"""
