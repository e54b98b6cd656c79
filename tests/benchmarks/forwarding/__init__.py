"""
Two projects whose relays forward stored messages to Celery: ours, and a peer's.

One process is one project on one broker; the environment says which.
"""
