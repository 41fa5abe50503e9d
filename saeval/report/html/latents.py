"""Reads the tables of one cell for its page: all latents at once, windows and judgements for some latents at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saeval._util import LEFT_OUT, packed_calls, rounded, without_shared
from saeval.records import MAIN, CellResult, mean_ranks
from saeval.results import CELL_TABLES, RunCell, arrow_table, read_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WINDOWS = ("latent", "role", "active", "decile", "context", "start", "tokens", "activations")
_CALLS = ("latent", "step", "variant", "prompt", "reply", "status")
_SEEN = ("latent", "group", "context", "start", "tokens", "activations")
_LISTS = ("neighbours", "cosines", "promoted", "suppressed", "histogram")
_JUDGEMENTS = ("latent", "scorer", "variant", "example", "active", "predicted", "probability", "status", "reason")
_MOST_REASONS = 5
_WRITTEN = ("tokens", "activations")  # of texts written for a latent; missing in files of earlier versions


@dataclass(frozen=True)
class Ranked:
    """Name and direction of a column of scores.

    Attributes:
        scorer: Label of the scorer.
        metric: The scorer's metric that is shown.
        higher_is_better: Direction of the metric.
    """

    scorer: str
    metric: str
    higher_is_better: bool | None

    @property
    def key(self) -> str:
        """Name of the column in `latents.parquet`."""
        return f"score.{self.scorer}.{self.metric}"


class CellTables:
    """The files of one cell. A missing file counts as empty.

    Args:
        cell: The cell.
        folder: Folder with the tables.
        ranked: Scorers and their shown metrics.

    Raises:
        InputError: If a file cannot be read.
    """

    def __init__(self, cell: CellResult, folder: Path, ranked: Sequence[Ranked]):
        self.cell = cell
        self._latents = self._read_latents(folder / "latents.parquet")
        windows = _Table(folder / "examples.parquet", _WINDOWS, numbered=("tokens",))
        self._windows_of = lru_cache(maxsize=1)(windows.of)  # details and calls of the same latents both need them
        self._seen = _Table(folder / "activations.parquet", _SEEN, numbered=("tokens",))
        self._judgements = _Table(folder / "judgements.parquet", _JUDGEMENTS, _WRITTEN)
        self._files = RunCell(cell, folder)
        self._calls = _Table(folder / "calls.parquet", _CALLS)
        self.ranked = tuple(r for r in ranked if r.key in self._latents.column_names)

    @staticmethod
    def _read_latents(path: Path) -> Any:
        kinds = CELL_TABLES["latents"]
        return read_table(path, kinds) if path.exists() else arrow_table([], {"latent": kinds["latent"]})

    @cached_property
    def numbers(self) -> list[int]:
        """Numbers of the latents, in the order in which they were drawn."""
        return [int(i) for i in self._latents.column("latent").to_pylist()]

    def column(self, name: str) -> list[float | None]:
        """Return a column of finite numbers, one per latent; None if there is none."""
        if name not in self._latents.column_names:
            return [None] * len(self.numbers)
        return [rounded(v) for v in self._latents.column(name).to_pylist()]

    def intervals(self, r: Ranked) -> tuple[list[float | None], list[float | None]]:
        """Return the ends of the 95 % interval of each latent's own score; None if there is none."""
        rows = zip(*(self._scores[name] for name in ("latent", "scorer", "metric", "low", "high")), strict=True)
        place = r.scorer, r.metric
        found = {latent: (low, high) for latent, scorer, metric, low, high in rows if (scorer, metric) == place}
        ends = [found.get(latent, (None, None)) for latent in self.numbers]
        return [rounded(low) for low, _ in ends], [rounded(high) for _, high in ends]

    @cached_property
    def _scores(self) -> dict[str, list[Any]]:
        """Columns of the cell's own scores that have an interval; empty for files of earlier versions."""
        import pyarrow.compute as pc

        names = ("latent", "scorer", "metric", "low", "high")
        path = self._files.folder / "scores.parquet"
        table = read_table(path, CELL_TABLES["scores"]) if path.exists() else None
        if table is None or not {*names, "variant"} <= {*table.column_names}:
            return {name: [] for name in names}
        own = table.filter(pc.and_(pc.equal(table["variant"], MAIN), pc.is_valid(table["low"])))
        return {name: own[name].to_pylist() for name in names}

    @cached_property
    def explanations(self) -> dict[int, list[dict[str, Any]]]:
        """Rows of explanations by latent; the cell's own explanation is first."""
        found: dict[int, list[dict[str, Any]]] = {}
        rows = self._files.explanations if (self._files.folder / "explanations.jsonl").exists() else []
        for row in rows:
            place = found.setdefault(row["latent"], [])
            place.insert(0 if row["variant"] == MAIN else len(place), row)
        return found

    def own(self, latent: int) -> dict[str, Any] | None:
        """Return the row of the cell's own explanation of a latent; None if there is none."""
        first = next(iter(self.explanations.get(latent, ())), None)
        return first if first is not None and first["variant"] == MAIN else None

    @cached_property
    def gaps(self) -> list[float | None]:
        """Disagreement of the scorers on each latent: the highest rank (as a share, 0 to 1) minus the lowest."""
        shares: list[dict[str, float]] = [{} for _ in self.numbers]
        for r in self.ranked:
            known = [(i, v if r.higher_is_better else -v) for i, v in enumerate(self.column(r.key)) if v is not None]
            for (i, _), rank in zip(known, mean_ranks([v for _, v in known]), strict=True):
                shares[i][r.scorer] = (float(rank) - 0.5) / len(known)
        return [rounded(max(s.values()) - min(s.values())) if len(s) > 1 else None for s in shares]

    def failures(self) -> list[tuple[str, str, int]]:
        """Return the most frequent reasons for missing explanations or answers: step, reason, number."""
        counts: dict[tuple[str, str], int] = {}
        for rows in self.explanations.values():
            for row in rows:
                if row.get("status") != "ok":
                    key = (
                        "explanation" if row["variant"] == MAIN else row["variant"],
                        row.get("reason") or row["status"],
                    )
                    counts[key] = counts.get(key, 0) + 1
        for scorer, status, reason in self._judgements.where_not("status", "ok", ("scorer", "status", "reason")):
            key = (scorer, f"{status}: {reason}" if reason else status)
            counts[key] = counts.get(key, 0) + 1
        return sorted(((s, r, n) for (s, r), n in counts.items()), key=lambda x: -x[2])[:_MOST_REASONS]

    def details(self, latents: Sequence[int]) -> tuple[dict[str, Any], bytes]:
        """Return the content of latents' pages: explanations, windows by role, judgements by scorer and variant.

        Returns:
            The content for JSON, with the number of tokens in place of each window's tokens; and the tokens of all
            windows in order, encoded by `_Numbers.bytes_of`.
        """
        shown, seen = self._windows_of(tuple(latents)), self._seen.of(latents)
        words, numbers = _numbered([rows["tokens"] for rows in (shown, seen) if rows])
        windows, of_role = [*_windows(shown), *_windows(seen)], _rows_by(shown, "role")
        of_group = _rows_by(seen, "group", first=len(shown["latent"]) if shown else 0)
        judged = self._judgements_of(latents, _places(windows, of_role))
        order: list[int] = []
        pages = []
        for i in latents:
            roles, groups = of_role.get(i, {}), of_group.get(i, {})
            order += chain(*roles.values(), *groups.values())
            explanations = [
                [row["variant"], row.get("text", ""), row.get("status", "ok"), row.get("reason", "")]
                for row in self.explanations.get(i, ())
            ]
            page = {"latent": i, **self._lists.get(i, {}), "explanations": explanations}
            page["senses"] = _senses(self.own(i))
            page["windows"] = [(role, [windows[k] for k in rows]) for role, rows in roles.items()]
            page["judged"] = judged.get(i, {})
            page["seen"] = [(name, [["", 1, None, *windows[k][3:]] for k in rows]) for name, rows in groups.items()]
            pages.append(page)
        planes = 2 if len(words) <= 1 << 16 else 4
        return {"latents": pages, "words": words, "planes": planes}, numbers.bytes_of(order, planes)

    @cached_property
    def _lists(self) -> dict[int, dict[str, list[Any]]]:
        """Facts by latent: neighbours, their cosines, promoted and suppressed tokens, histogram."""
        have = [name for name in _LISTS if name in self._latents.column_names]
        known = {name: self._latents.column(name).to_pylist() for name in have}
        if "cosines" in known:
            known["cosines"] = [[rounded(v) for v in cosines or []] for cosines in known["cosines"]]
        return {i: {name: column[k] or [] for name, column in known.items()} for k, i in enumerate(self.numbers)}

    @property
    def has_calls(self) -> bool:
        """Whether the run contains prompts and replies."""
        return len(self._calls) > 0

    def calls(self, latents: Sequence[int]) -> tuple[dict[str, Any], bytes]:
        """Return prompts, raw replies and statuses of latents, in the order of the calls.

        They are packed by `packed_calls`; unpacking requires the latent's windows in the order of `_grouped`.

        Returns:
            By step and variant, the text with which all prompts begin, the text with which they end, and each latent's
            calls, whose parts are given as ranges (`begin-end`) of the bytes; and these bytes.

        Raises:
            InputError: If the calls cannot be read.
        """
        found: dict[tuple[str, str], dict[int, list[tuple[str, str, str]]]] = {}
        rows = self._calls.of(latents)
        columns = [rows[name].to_pylist() for name in _CALLS] if rows else []
        for latent, step, variant, prompt, reply, status in zip(*columns, strict=True):
            asked = found.setdefault((step, variant), {}).setdefault(latent, [])
            asked.append((prompt or "", reply or "", status or ""))
        texts = _texts(self._windows_of(tuple(latents)))
        packed = bytearray()

        def place(part: bytes) -> str:
            packed.extend(part)
            return f"{len(packed) - len(part)}-{len(packed)}"

        index: dict[str, Any] = {}
        for (step, variant), asked_of in found.items():
            before, after, prompts = without_shared(
                [prompt for asked in asked_of.values() for prompt, _, status in asked if status != LEFT_OUT]
            )
            rest = iter(prompts)
            held: dict[int, str] = {}
            for latent, asked in asked_of.items():
                calls = [(p if s == LEFT_OUT else next(rest), reply, s) for p, reply, s in asked]
                held[latent] = packed_calls(calls, _grouped(texts.get(latent, {}), step), spell=place)
            index.setdefault(step, {})[variant] = [before, after, held]
        return index, bytes(packed)

    def _judgements_of(
        self, latents: Sequence[int], places: Mapping[int, Mapping[str, int]]
    ) -> dict[int, dict[str, dict[str, list[Any]]]]:
        """Return columns of judgements by latent, scorer and variant; see `_column`.

        The columns are window, active, predicted, probability, status, reason, and the text if it was written for the
        latent.

        Args:
            latents: The latents.
            places: By latent and address, the number of a window, which replaces the address.
        """
        rows = self._judgements.of(latents)
        found: dict[int, dict[str, dict[str, list[Any]]]] = {}
        if not rows:
            return found
        columns = _judged_columns(rows)
        for begin, end, (latent, scorer, variant) in _runs([rows[name] for name in ("latent", "scorer", "variant")]):
            variants = found.setdefault(latent, {}).setdefault(scorer, {})
            known = places.get(latent, {})
            window, *others = (column[begin:end] for column in columns)
            held = variants.setdefault(variant, [[] for _ in columns])
            for values, more in zip(held, ([known.get(address, address) for address in window], *others), strict=True):
                values += more
        for scorers in found.values():
            for variants in scorers.values():
                for name, held in variants.items():
                    variants[name] = [_column(values) for values in held]
        return found


def _column(values: list[Any]) -> Any:
    """Return a column as a list, or as a single value if all values are equal (and not lists)."""
    first = values[0]
    return first if not isinstance(first, list) and values.count(first) == len(values) else values


def _judged_columns(rows: Mapping[str, Any]) -> list[list[Any]]:
    """Return address, active, predicted, probability, status, reason and written text of judged windows."""
    import pyarrow as pa

    example, probability = rows["example"].to_pylist(), _listed(rows["probability"])
    active, predicted = (rows[name].cast(pa.int8()) for name in ("active", "predicted"))
    texts = [_listed(rows[name]) if name in rows else [None] * len(example) for name in _WRITTEN]
    return [
        example,
        _listed(active.fill_null(0)),
        _listed(predicted),
        [p if p is None else rounded(p, 4) for p in probability],
        _listed(rows["status"]),
        _listed(rows["reason"].fill_null("")),
        [*map(_written, *texts)],
    ]


def _listed(column: Any) -> list[Any]:
    """Return an Arrow array as a list; `to_pylist` makes its items one by one, which takes five times as long."""
    import numpy as np
    import pyarrow as pa

    items: list[Any]
    if column.null_count == len(column):
        items = [None] * len(column)
    elif column.null_count or pa.types.is_list(column.type):
        items = column.to_pylist()
    elif pa.types.is_string(column.type):  # few different ones
        encoded = column.dictionary_encode()
        items = np.array(encoded.dictionary.to_pylist(), dtype=object).take(encoded.indices.to_numpy()).tolist()
    else:
        items = column.to_numpy(zero_copy_only=False).tolist()
    return items


def _runs(columns: Sequence[Any]) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Yield the begin and end of each run of rows that are equal in all columns, and their values."""
    import numpy as np
    import pyarrow as pa

    rows = len(columns[0])
    new = np.zeros(rows, dtype=bool)
    new[:1] = True
    for column in columns:
        values = column.dictionary_encode(null_encoding="encode").indices.to_numpy()
        new[1:] |= values[1:] != values[:-1]
    begins = np.flatnonzero(new)
    values = zip(*(column.take(pa.array(begins)).to_pylist() for column in columns), strict=True)
    for (begin, end), value in zip(pairwise([*begins.tolist(), rows]), values, strict=True):
        yield begin, end, value


def _senses(explanation: Mapping[str, Any] | None) -> str:
    """Return the number of senses that an explainer found, and the share of resamples for each number, as text."""
    notes = (explanation or {}).get("notes") or {}
    senses, found = notes.get("senses"), notes.get("number_found")
    if not isinstance(senses, list) or not isinstance(found, dict):
        return ""
    shares = [f"{number} in {share:.0%}" for number, share in found.items() if isinstance(share, float)]
    return f"{len(senses)} (resamples: {', '.join(shares)})"


class _Table:
    """Reads a Parquet file with a column `latent` by latent; only the requested row groups are in memory."""

    def __init__(self, path: Path, columns: Sequence[str], optional: Sequence[str] = (), numbered: Sequence[str] = ()):
        self.path, self._encoded = path, numbered
        self._latents = self._read(("latent",)).column("latent").to_numpy()
        self._columns = (*columns, *(name for name in optional if name in self._names))
        self._group = lru_cache(maxsize=2)(self._read_group)  # latents are requested in the order of the file

    def __len__(self) -> int:
        return len(self._latents)

    def _read(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Any:
        kinds = CELL_TABLES[self.path.stem]
        if self.path.exists():
            numbered = [name for name in self._encoded if name in columns]
            return read_table(self.path, kinds, columns, others=False, groups=groups, numbered=numbered)
        return arrow_table([], {name: kinds[name] for name in columns})

    def _read_group(self, group: int) -> Any:
        return self._read(self._columns, [group])

    @cached_property
    def _names(self) -> Sequence[str]:
        """Names of the file's columns."""
        import pyarrow.parquet as pq

        return pq.read_schema(self.path).names if self.path.exists() else ()

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """First row of each row group, and the number of rows."""
        import numpy as np
        import pyarrow.parquet as pq

        facts = pq.read_metadata(self.path)
        return np.cumsum([0, *(facts.row_group(i).num_rows for i in range(facts.num_row_groups))])

    @cached_property
    def _places(self) -> dict[int, NDArray[np.int64]]:
        import numpy as np

        order = np.argsort(self._latents, kind="stable")
        names, first = np.unique(self._latents[order], return_index=True)
        return dict(zip(names.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}

    def where_not(self, name: str, value: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Yield these columns of the rows where another column differs from a value."""
        import pyarrow.compute as pc

        for group in range(len(self._begins) - 1 if len(self._latents) else 0):
            rows = self._read(tuple({*columns, name, "latent"}), [group])
            rows = rows.filter(pc.not_equal(rows.column(name), value))
            yield from zip(*(rows.column(c).to_pylist() for c in columns), strict=True)

    def of(self, latents: Sequence[int]) -> dict[str, Any]:
        """Return the rows of these latents by column, in the order of the file; empty if there are none."""
        import numpy as np
        import pyarrow as pa

        places = [self._places[i] for i in latents if i in self._places]
        if not places:
            return {}
        rows = np.concatenate(places)
        group = np.searchsorted(self._begins, rows, side="right") - 1
        needed, which = np.unique(group, return_inverse=True)
        sizes = np.diff(self._begins)[needed]
        within = rows - self._begins[group] + (np.cumsum(sizes) - sizes)[which]
        found = pa.concat_tables([self._group(int(g)) for g in needed])
        consecutive = bool((np.diff(within) == 1).all())  # the usual case, in which no row is copied
        found = found.slice(within[0], len(within)) if consecutive else found.take(within)
        return {name: _one_array(found.column(name)) for name in found.column_names}


def _one_array(column: Any) -> Any:
    """Return a column as one array; a slice, if it is one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class _Numbers(NamedTuple):
    """Tokens of consecutive windows as indices of distinct tokens, and the end of each window."""

    numbers: NDArray[np.uint32]
    ends: NDArray[np.int64]

    def bytes_of(self, windows: Sequence[int], planes: int) -> bytes:
        """Return the indices of windows byte by byte: first the lowest byte of all, then the next, up to `planes`."""
        import numpy as np

        chosen = np.asarray(windows, dtype=np.int64)
        begins = np.concatenate([[0], self.ends])[chosen]
        counts = self.ends[chosen] - begins
        at = np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        by_byte = self.numbers[at].view(np.uint8).reshape(-1, 4)
        return bytes(by_byte[:, :planes].T.tobytes())


def _numbered(columns: Sequence[Any]) -> tuple[list[str], _Numbers]:
    """Return the distinct tokens of columns of windows, the most frequent first, and all tokens as their indices."""
    import numpy as np
    import pyarrow as pa

    if not columns:
        return [], _Numbers(np.empty(0, dtype="<u4"), np.empty(0, dtype=np.int64))
    found, lists = zip(*(_distinct(column.flatten()) for column in columns), strict=True)
    encoded = pa.concat_arrays(found).dictionary_encode()
    of_columns = np.split(encoded.indices.to_numpy(), np.cumsum([len(tokens) for tokens in found])[:-1])
    numbers = np.concatenate([known[places] for known, places in zip(of_columns, lists, strict=True)])
    # Arrow numbers what it finds in the order of its first occurrence, which decides among equally frequent tokens.
    order = np.argsort(-np.bincount(numbers, minlength=len(encoded.dictionary)), kind="stable")
    rank = np.empty(len(order), dtype="<u4")
    rank[order] = np.arange(len(order))
    lengths = [np.diff(column.offsets.to_numpy()) for column in columns]
    distinct = encoded.dictionary.to_pylist()
    return [distinct[i] for i in order], _Numbers(rank[numbers], np.cumsum(np.concatenate(lengths)))


def _distinct(tokens: Any) -> tuple[Any, NDArray[np.int32]]:
    """Return the distinct tokens in the order of their first occurrence, and the place of each token among them."""
    import pyarrow as pa

    encoded = tokens if pa.types.is_dictionary(tokens.type) else tokens.dictionary_encode()
    numbers = encoded.indices.dictionary_encode()  # the dictionary is that of the row group
    return encoded.dictionary.take(numbers.dictionary), numbers.indices.to_numpy()


def _texts(rows: Mapping[str, Any]) -> dict[int, dict[tuple[str, bool], list[str]]]:
    """Return the texts of windows by latent, and by role and whether the latent fires."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[int, dict[tuple[str, bool], list[str]]] = {}
    if not rows:
        return found
    tokens, begins = _flat(rows["tokens"])
    texts = pc.binary_join(pa.ListArray.from_arrays(begins, tokens.cast(pa.string())), "").to_pylist()
    for begin, end, (latent, role, active) in _runs([rows[name] for name in ("latent", "role", "active")]):
        held = found.setdefault(latent, {}).setdefault((role, bool(active)), [])
        held += texts[begin:end]
    return found


def _grouped(texts: Mapping[tuple[str, bool], list[str]], step: str) -> list[list[str]]:
    """Return the windows that a step gets: activating ones, non-activating ones, and, to score, those of the decoy."""
    if step == "explain":
        return [texts.get(("explain", active), []) for active in (True, False)]
    return [texts.get(group, []) for group in (("score", True), ("score", False), ("decoy", False))]


def _windows(rows: Mapping[str, Any]) -> list[list[Any]]:
    """Return windows as [address, active, decile, number of tokens, [place, activation, …]]."""
    import numpy as np

    if not rows:
        return []
    tokens = np.diff(rows["tokens"].offsets.to_numpy()).tolist()
    items, value_ends = _flat(rows["activations"])
    values = items.to_numpy(zero_copy_only=False)
    fired = np.flatnonzero(values)
    fired = fired[np.isfinite(values[fired])]
    edges = np.searchsorted(fired, value_ends)
    places = fired - np.repeat(value_ends[:-1], np.diff(edges))
    sparse: list[float] = [None] * (2 * len(fired))  # type: ignore[list-item]
    sparse[::2] = places.tolist()
    sparse[1::2] = _rounded(values[fired])
    nothing = [None] * len(tokens)
    active, decile = (_listed(rows[name]) if name in rows else nothing for name in ("active", "decile"))
    addresses = zip(_listed(rows["context"]), _listed(rows["start"]), strict=True)
    columns = zip(addresses, active, decile, tokens, pairwise((2 * edges).tolist()), strict=True)
    return [
        [f"{context}:{start}", int(bool(fires)), rank, size, sparse[begin:end]]
        for (context, start), fires, rank, size, (begin, end) in columns
    ]


def _rounded(values: NDArray[np.float32]) -> list[float]:
    """Return numbers with the four significant digits of `rounded`.

    Products of a 32-bit number and a power of ten up to 10¹¹ are exact in 64 bits, so ties are, too.
    """
    import numpy as np

    numbers, sizes = values.astype(np.float64), np.abs(values).astype(np.float64)
    powers = np.array([float(f"1e{k}") for k in range(-8, 5)])
    scale = np.array([10.0**k for k in range(11, -1, -1)]).take(
        np.searchsorted(powers, sizes, side="right") - 1, mode="clip"
    )
    short: list[float] = (np.rint(numbers * scale) / scale).tolist()
    for i in np.flatnonzero((sizes < powers[0]) | (sizes >= powers[-1])).tolist():
        short[i] = rounded(float(numbers[i]), 4) or 0.0
    return short


def _rows_by(rows: Mapping[str, Any], kind: str, first: int = 0) -> dict[int, dict[str, list[int]]]:
    """Return the numbers of rows, which begin with `first`, by latent and by the column `kind`."""
    found: dict[int, dict[str, list[int]]] = {}
    if not rows:
        return found
    for begin, end, (latent, group) in _runs([rows["latent"], rows[kind]]):
        held = found.setdefault(latent, {}).setdefault(group, [])
        held += range(first + begin, first + end)
    return found


def _places(windows: Sequence[Sequence[Any]], rows: Mapping[int, Mapping[str, list[int]]]) -> dict[int, dict[str, int]]:
    """Return, by latent and address, the numbers of its score windows; windows of the decoy come last."""
    found = {}
    for latent, roles in rows.items():
        scored = [*roles.get("score", ()), *roles.get("decoy", ())]
        found[latent] = {windows[row][0]: k for k, row in reversed(list(enumerate(scored)))}
    return found


def _written(tokens: Sequence[str] | None, activations: Sequence[float] | None) -> list[Any] | None:
    """Return a written text as [tokens, [place, activation, …]]; None for a window of the corpus."""
    if tokens is None or activations is None:
        return None
    fired = [(k, rounded(value, 4)) for k, value in enumerate(activations) if value > 0]
    return [tokens, [part for pair in fired for part in pair]]


def _flat(lists: Any) -> tuple[Any, NDArray[np.int32]]:
    """Return the items of all lists joined, and the start of each list, followed by the end of the last."""
    ends = lists.offsets.to_numpy()
    return lists.flatten(), ends - ends[0]
