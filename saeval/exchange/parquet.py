"""Exports and imports the tables of a run as Parquet."""

from functools import partial

from saeval.exchange import saeval_tables

write = partial(saeval_tables.write, kind="parquet")
read = partial(saeval_tables.read, kind="parquet")
