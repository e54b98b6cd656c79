"""Adapters, each for one package that a project may use: import what you need."""
