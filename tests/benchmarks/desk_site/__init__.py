"""
A project whose desk is opened: few rows at first, then a great many.

Run by ``tests.benchmarks.desk`` in a process of its own.
"""
