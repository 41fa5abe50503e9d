"""Exports and imports the tables of a run as JSON lines."""

from functools import partial

from saeval.exchange import saeval_tables

write = partial(saeval_tables.write, kind="jsonl")
read = partial(saeval_tables.read, kind="jsonl")
