"""Writes what the documentation takes from the code: tables, the config's JSON schema, diagrams, the plot.

`python -m tools.docs` writes, `--check` fails where a committed file differs. Nothing in it measures or serves.
"""
