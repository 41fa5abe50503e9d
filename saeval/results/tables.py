"""Reads and writes Parquet tables, and the leaderboard as a tidy table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._util import InputError, escape_spreadsheet, refuse_pipe, replacing, safe_text, shortage, write_atomic
from saeval.records import RunResult
from saeval.results.columns import Line, flat_tables

if TYPE_CHECKING:
    import pyarrow as pa

_LEVEL = 4  # of zstd; 5 takes half as long again for 1 % less
_PAGE = 1 << 23  # bytes; zstd finds what repeats within a page only


def tidy(*runs: RunResult) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the leaderboard's columns with their Arrow types, and its rows; rows omit columns without a value."""
    return flat_tables((Line(run, cell, row) for run in runs for cell in run.cells for row in cell.scores), runs)


def write_csv(run: RunResult, path: Path) -> None:
    """Write the leaderboard as CSV."""
    write_atomic(path, csv_text(run))


def csv_text(*runs: RunResult) -> str:
    """Return leaderboards as CSV. Text that a spreadsheet would read as a formula is prefixed with `'`."""
    columns, rows = tidy(*runs)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: escape_spreadsheet(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def write_parquet(run: RunResult, path: Path) -> None:
    """Write the leaderboard as Parquet."""
    columns, rows = tidy(run)
    write_table(path, rows, columns)


class TableWriter:
    """Writes a Parquet file (zstd) incrementally; see `table_writer`."""

    def __init__(self, path: Path, columns: Mapping[str, str], at_once: int, unlike: Sequence[str]):
        import pyarrow.parquet as pq

        self._kinds, self._at_once = columns, at_once
        self._values: dict[str, list[Any]] = {name: [] for name in columns}
        schema = arrow_table([], columns).schema
        paths = {name: _path(name, kind) for name, kind in columns.items() if name not in unlike}
        self._file = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=_LEVEL,
            data_page_size=_PAGE,
            # Activations are mostly zeros, which zstd packs as well as a dictionary would, in less time.
            use_dictionary=[path for name, path in paths.items() if columns[name] != "list<float>"],
            # Nobody looks for rows by an element of a list, or by a range of texts.
            write_statistics=[path for name, path in paths.items() if name == path],
            column_encoding=dict.fromkeys(unlike, "DELTA_BYTE_ARRAY"),
        )

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows.

        Raises:
            InputError: If a value does not fit its column.
        """
        self.add_columns(_transposed([*rows], self._kinds))

    def add_columns(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add rows that are given as columns, with all columns of the table.

        Raises:
            InputError: If a value does not fit its column.
        """
        for name, values in self._values.items():
            values += columns[name]
        if self._rows >= self._at_once:
            self._flush()

    @property
    def _rows(self) -> int:
        return len(next(iter(self._values.values())))

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(_arrow_table(self._values, self._kinds))
            self._values = {name: [] for name in self._kinds}

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        try:
            self._flush()
        finally:
            self._file.close()


@contextmanager
def table_writer(
    path: Path, columns: Mapping[str, str], at_once: int = 20_000, unlike: Sequence[str] = ()
) -> Iterator[TableWriter]:
    """Yield a writer of a table. The file appears, complete, if the block ends without an error.

    Args:
        path: The file.
        columns: Columns and Arrow types; `list<…>` for a list.
        at_once: Approximate number of rows in memory, and in a row group of the file.
        unlike: Columns of text of which no two rows are equal; only what differs from the row before is written.

    Raises:
        InputError: If the file cannot be written.
    """
    with replacing(path) as file, closing(TableWriter(file, columns, at_once, unlike)) as writer:
        yield writer


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows as Parquet (zstd), with these columns and Arrow types; `list<…>` for a list. `rows` may be empty.

    Raises:
        InputError: If the file cannot be written, or a value does not fit its column.
    """
    with table_writer(path, columns) as table:
        table.add(rows)


def table_bytes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bytes:
    """Return rows as the content of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(arrow_table(rows, columns), sink, compression="zstd", compression_level=_LEVEL)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def arrow_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    """Return rows as an Arrow table with these columns and types.

    Raises:
        InputError: If a value does not fit its column.
    """
    return _arrow_table(_transposed(rows, columns), columns)


def _transposed(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in names}


def _arrow_table(values: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    made = {}
    for name, kind in kinds.items():
        try:
            made[name] = pa.array(values[name], _arrow(kind))
        except (pa.ArrowException, OverflowError, UnicodeError):
            raise InputError(f"{safe_text(name)}: a value does not fit the column's type, {kind}") from None
    return pa.table(made)


def read_table(
    file: Path,
    kinds: Mapping[str, str],
    columns: Sequence[str] = ("latent",),
    *,
    others: bool = True,
    groups: Sequence[int] | None = None,
    numbered: Sequence[str] = (),
) -> pa.Table:
    """Read a table of a run, with known columns cast to their types.

    Args:
        file: The Parquet file.
        kinds: Columns and Arrow types; a name that ends in a dot stands for all columns with this prefix.
        columns: Required columns.
        others: Whether to read all other columns, too.
        groups: Row groups to read; default: all.
        numbered: Columns of text to return as Arrow dictionaries, as files of saeval hold them; others stay text.

    Raises:
        InputError: If the file is missing or incomplete, lacks a column, or has values of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_pipe(file)
    try:
        paths = [_path(name, kinds[name]) for name in numbered]
        with pq.ParquetFile(file, read_dictionary=paths) as parquet:
            wanted = range(parquet.num_row_groups) if groups is None else groups
            # Threads take a third more CPU time, and hardly less time for the few rows of some groups.
            chosen = None if others else list(columns)
            table = parquet.read_row_groups(list(wanted), columns=chosen, use_threads=groups is None)
        table.validate(full=True)
        names = table.column_names
    except FileNotFoundError:
        raise InputError(f"{file}: does not exist; give the complete run directory") from None
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if (short := shortage(error)) is not None:
            raise InputError(f"{file}: cannot be read now: {short}") from None
        raise InputError(
            f"{file}: is not a complete Parquet file ({type(error).__name__}); copy or create it again"
        ) from None
    if missing := [name for name in columns if name not in names]:
        raise InputError(f"{file}: has no column {', '.join(missing)}")
    if len(set(names)) < len(names):
        raise InputError(f"{file}: has a column twice")
    for i, name in enumerate(names):
        kind = kinds.get(name) or kinds.get(name.partition(".")[0] + ".")
        try:
            known = (_arrow(kind, numbered=name in numbered), _arrow(kind)) if kind else ()
            if kind and table.column(i).type not in known:
                table = table.set_column(i, name, table.column(i).cast(_arrow(kind)))
        except pa.ArrowException:
            raise InputError(f"{file}: the column {safe_text(name)} does not contain values of type {kind}") from None
    if table.column("latent").null_count:
        raise InputError(f"{file}: a row has no latent number")
    return table


def _arrow(kind: str, *, numbered: bool = False) -> Any:
    import pyarrow as pa

    if kind.startswith("list<"):
        return pa.list_(_arrow(kind[5:-1], numbered=numbered))
    return pa.dictionary(pa.int32(), pa.type_for_alias(kind)) if numbered else pa.type_for_alias(kind)


def _path(name: str, kind: str) -> str:
    """Return the path of a column's values in a Parquet file."""
    return f"{name}.list.element" if kind.startswith("list<") else name
