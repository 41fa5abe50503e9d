"""Reads the tables of one cell for its page: all latents, and windows and judgements of a few latents at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._util import rounded, without_shared
from saeval.records import MAIN, CellResult, mean_ranks
from saeval.results import CELL_TABLES, RunCell, arrow_table, read_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WINDOWS = ("latent", "role", "active", "decile", "context", "start", "document", "tokens", "activations")
_CALLS = ("latent", "step", "variant", "prompt", "reply", "status")
_SEEN = ("latent", "group", "context", "start", "document", "tokens", "activations")
_LISTS = ("neighbours", "cosines", "promoted", "suppressed", "histogram")
_JUDGEMENTS = ("latent", "scorer", "variant", "example", "active", "predicted", "probability", "status", "reason")
_WRITTEN = ("tokens", "activations")  # of texts that were written for the question; earlier versions wrote none


Told = tuple[str, str, list[tuple[str, str, str]]]
"""What all prompts of a step on a latent begin and end with; then what is between in each, its reply and status."""


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
        self._windows = _Table(folder / "examples.parquet", _WINDOWS)
        self._seen = _Table(folder / "activations.parquet", _SEEN)
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
        """Return a column of finite numbers, one per latent; None where there is none."""
        if name not in self._latents.column_names:
            return [None] * len(self.numbers)
        return [rounded(v) for v in self._latents.column(name).to_pylist()]

    def intervals(self, r: Ranked) -> tuple[list[float | None], list[float | None]]:
        """Return the ends of the 95 % interval of each latent's own score; None where there is none."""
        rows = zip(*(self._scores[name] for name in ("latent", "scorer", "metric", "low", "high")), strict=True)
        place = r.scorer, r.metric
        found = {latent: (low, high) for latent, scorer, metric, low, high in rows if (scorer, metric) == place}
        ends = [found.get(latent, (None, None)) for latent in self.numbers]
        return [rounded(low) for low, _ in ends], [rounded(high) for _, high in ends]

    @cached_property
    def _scores(self) -> dict[str, list[Any]]:
        """Columns of the cell's own scores that have an interval; earlier versions wrote none."""
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
        """Rows of explanations by latent, the cell's own first."""
        found: dict[int, list[dict[str, Any]]] = {}
        for row in self._explanations():
            place = found.setdefault(row["latent"], [])
            place.insert(0 if row["variant"] == MAIN else len(place), row)
        return found

    def _explanations(self) -> list[dict[str, Any]]:
        return self._files.explanations if (self._files.folder / "explanations.jsonl").exists() else []

    def own(self, latent: int) -> dict[str, Any] | None:
        """Return the row of the cell's own explanation of a latent."""
        first = next(iter(self.explanations.get(latent, ())), None)
        return first if first is not None and first["variant"] == MAIN else None

    @cached_property
    def gaps(self) -> list[float | None]:
        """Disagreement of the scorers on each latent: its highest rank share minus its lowest, 0 to 1."""
        shares: list[dict[str, float]] = [{} for _ in self.numbers]
        for r in self.ranked:
            known = [(i, v if r.higher_is_better else -v) for i, v in enumerate(self.column(r.key)) if v is not None]
            for (i, _), rank in zip(known, mean_ranks([v for _, v in known]), strict=True):
                shares[i][r.scorer] = (float(rank) - 0.5) / len(known)
        return [rounded(max(s.values()) - min(s.values())) if len(s) > 1 else None for s in shares]

    def failures(self, most: int = 5) -> list[tuple[str, str, int]]:
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
        return sorted(((s, r, n) for (s, r), n in counts.items()), key=lambda x: -x[2])[:most]

    def details(self, latents: Sequence[int]) -> list[dict[str, Any]]:
        """Return the content of latents' pages: explanations, windows by role, judgements by scorer and variant."""
        windows, judged = _windows(self._windows.of(latents), "role"), self._judgements_of(latents)
        seen = _windows(self._seen.of(latents), "group")
        return [
            {
                "latent": i,
                **self._lists.get(i, {}),
                "explanations": [
                    [row["variant"], row.get("text", ""), row.get("status", "ok"), row.get("reason", "")]
                    for row in self.explanations.get(i, ())
                ],
                "senses": _senses(self.own(i)),
                "windows": windows.get(i, {}),
                "seen": seen.get(i, {}),
                "judged": judged.get(i, {}),
            }
            for i in latents
        ]

    @cached_property
    def _lists(self) -> dict[int, dict[str, list[Any]]]:
        """Known facts by latent: neighbours, their cosines, tokens it promotes and suppresses, histogram."""
        have = [name for name in _LISTS if name in self._latents.column_names]
        known = {name: self._latents.column(name).to_pylist() for name in have}
        if "cosines" in known:
            known["cosines"] = [[rounded(v) for v in cosines or []] for cosines in known["cosines"]]
        return {i: {name: column[k] or [] for name, column in known.items()} for k, i in enumerate(self.numbers)}

    @property
    def has_calls(self) -> bool:
        """Whether prompts and replies were kept."""
        return self._calls.path.is_file()

    def calls(self, latents: Sequence[int]) -> dict[int, dict[str, dict[str, Told]]]:
        """Return prompts, raw replies and statuses by latent, step and variant, in the order of asking.

        What the prompts of a step share is written once.

        Raises:
            InputError: If they cannot be read.
        """
        found: dict[tuple[int, str, str], list[tuple[str, str, str]]] = {}
        rows = self._calls.of(latents)
        columns = [rows[name].to_pylist() for name in _CALLS] if rows else []
        for latent, step, variant, prompt, reply, status in zip(*columns, strict=True):
            found.setdefault((latent, step, variant), []).append((prompt or "", reply or "", status or ""))
        told: dict[int, dict[str, dict[str, Told]]] = {}
        for (latent, step, variant), asked in found.items():
            before, after, prompts = without_shared([prompt for prompt, _, _ in asked])
            rest = [(prompt, reply, status) for prompt, (_, reply, status) in zip(prompts, asked, strict=True)]
            told.setdefault(latent, {}).setdefault(step, {})[variant] = before, after, rest
        return told

    def _judgements_of(self, latents: Sequence[int]) -> dict[int, dict[str, dict[str, list[Any]]]]:
        """Return [address, active, predicted, probability, status, reason] by latent, scorer and variant.

        A text that was written for the question follows, as a window without place.
        """
        rows = self._judgements.of(latents)
        found: dict[int, dict[str, dict[str, list[Any]]]] = {}
        if not rows:
            return found
        columns = [rows[name].to_pylist() for name in _JUDGEMENTS]
        columns += [rows[name].to_pylist() if name in rows else [None] * len(columns[0]) for name in _WRITTEN]
        for latent, scorer, variant, example, active, predicted, probability, status, reason, *written in zip(
            *columns, strict=True
        ):
            answer = None if predicted is None else int(predicted)
            line = [example, int(bool(active)), answer, rounded(probability, 4), status, reason or ""]
            line += _written(*written)
            found.setdefault(latent, {}).setdefault(scorer, {}).setdefault(variant, []).append(line)
        return found


def _senses(explanation: Mapping[str, Any] | None) -> str:
    """Return how many senses an explainer found, and in which share of its resamples it found each number."""
    notes = (explanation or {}).get("notes") or {}
    senses, found = notes.get("senses"), notes.get("number_found")
    if not isinstance(senses, list) or not isinstance(found, dict):
        return ""
    shares = [f"{number} in {share:.0%}" for number, share in found.items() if isinstance(share, float)]
    return f"{len(senses)} (resamples: {', '.join(shares)})"


class _Table:
    """A Parquet file with a column `latent`, read by latent; only the requested row groups are in memory."""

    def __init__(self, path: Path, columns: Sequence[str], optional: Sequence[str] = ()):
        self.path = path
        self._latents = self._read(("latent",)).column("latent").to_numpy()
        self._columns = (*columns, *(name for name in optional if name in self._names))
        self._group = lru_cache(maxsize=2)(self._read_group)  # latents are requested in the order of the file

    def _read(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Any:
        kinds = CELL_TABLES[self.path.stem]
        if self.path.exists():
            return read_table(self.path, kinds, columns, others=False, groups=groups)
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
        """Row at which each row group begins, and the end."""
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
        found = pa.concat_tables([self._group(int(g)) for g in needed]).take(within)
        return {name: found.column(name).combine_chunks() for name in found.column_names}


def _windows(rows: Mapping[str, Any], kind: str) -> dict[int, dict[str, list[Any]]]:
    """Return windows by latent and kind (a column): [address, active, decile, document, tokens, [place, activation,
    …]]."""
    import numpy as np

    found: dict[int, dict[str, list[Any]]] = {}
    if not rows:
        return found
    tokens, token_ends = _flat(rows["tokens"])
    values, value_ends = _flat(rows["activations"])
    words = tokens.tolist()
    strengths = np.nan_to_num(values.astype(float), nan=0.0, posinf=0.0, neginf=0.0)
    fired = np.flatnonzero(strengths)
    edges = np.searchsorted(fired, value_ends).tolist()
    fired_at, strength = fired.tolist(), [rounded(v, 4) or 0.0 for v in strengths[fired].tolist()]
    names = ["latent", kind, "context", "start", "document"]
    nothing = [None] * len(token_ends)
    judged = [rows[name].to_pylist() if name in rows else nothing for name in ("active", "decile")]
    plain = [*(rows[name].to_pylist() for name in names), *judged]
    for k, (latent, group, context, start, document, active, decile) in enumerate(zip(*plain, strict=False)):
        begin = int(value_ends[k])
        sparse: list[float] = []
        for at in range(edges[k], edges[k + 1]):
            sparse += (fired_at[at] - begin, strength[at])
        window = [
            f"{context}:{start}",
            int(bool(active)),
            decile,
            document,
            words[token_ends[k] : token_ends[k + 1]],
            sparse,
        ]
        found.setdefault(latent, {}).setdefault(group, []).append(window)
    return found


def _written(tokens: Sequence[str] | None, activations: Sequence[float] | None) -> list[Any]:
    """Return a written text as [[tokens, [place, activation, …]]]; nothing for a window of the corpus."""
    if tokens is None or activations is None:
        return []
    fired = [(k, rounded(value, 4)) for k, value in enumerate(activations) if value > 0]
    return [[tokens, [part for pair in fired for part in pair]]]


def _flat(lists: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the items of all lists in a row, and where each list begins in it, with the end after the last."""
    ends = lists.offsets.to_numpy()
    return lists.flatten().to_numpy(zero_copy_only=False), ends - ends[0]
