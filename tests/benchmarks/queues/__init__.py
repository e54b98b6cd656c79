"""
A project of each queue that is measured, run in processes of its own.

It needs Django and the queue, and nothing of the benchmarks: another interpreter than
that of ``make bench`` may run it, with the Django that the queue supports.
"""
