"""Adapters, each for one optional package: import the ones that you need."""
