"""Matches the latents of several coders by explanation, decoder or encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from saeval._compare.pairwise import split_reference
from saeval._util import (
    WIDTH,
    InputError,
    PluginError,
    SaevalError,
    aligned,
    derive_rng,
    did_you_mean,
    fold,
    number,
    refuse_text,
)
from saeval.activations import ActivationStore, store_folder
from saeval.models import embedder
from saeval.plugin.registry import Loaded, Registry
from saeval.results import RunCell, open_run
from saeval.task import Part, Task, load_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeval.plugin.base import ActivationSource, Embed

    Floats = NDArray[np.floating[Any]]

Basis = Literal["explanations", "decoder", "encoder"]
BASES: tuple[Basis, ...] = ("explanations", "decoder", "encoder")
"""Available bases of comparison."""
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
"""The model that embeds explanations, unless another is named."""
HUNGARIAN_MAX = 8192
"""Maximum latents of the larger side for the best one-to-one matching."""
_TILE = 2048  # latents of one side per tile; cosines with the whole other side are in memory
_MIXED = 4096  # maximum latents used for the mean and covariance of random vectors


@dataclass(frozen=True)
class Match:
    """A matching of the latents of two coders.

    Attributes:
        pairs: Indices of the matched latents on both sides.  [matched, 2]
        cosines: Their cosines.  [matched]
        method: `hungarian`: the one-to-one matching with the largest sum of cosines; `mutual nearest neighbours`: pairs
            in which each latent is nearest to the other, so some latents stay unmatched.
    """

    pairs: NDArray[np.int64]
    cosines: Floats
    method: str

    @property
    def score(self) -> float:
        """Mean cosine of matched latents; nan if there are none."""
        return float(self.cosines.mean()) if len(self.cosines) else float("nan")


@dataclass(frozen=True)
class Similarity:
    """Similarity of two cells' latents.

    Attributes:
        a: The first cell, `run:cell`.
        b: The second.
        basis: Basis of the comparison.
        score: Mean cosine of matched latents; None if they cannot be compared.
        random: The same with random vectors of the mean and covariance of b's in place of b's: the score expected for
            unrelated latents.
        shuffled: Mean cosine of a's matched latents with other latents' partners: the score of arbitrary pairs.
        matched: Number of matched latents.
        latents: Number of latents on each side.
        method: The matching method, or why they cannot be compared.
        pairs: Matched latents of a and b, and their cosines.
        dead: Number of omitted latents on each side, which never fire on their run's corpus; None if unknown because
            the activations are not cached.
    """

    a: str
    b: str
    basis: Basis
    score: float | None
    random: float | None
    shuffled: float | None
    matched: int
    latents: tuple[int, int]
    method: str
    pairs: tuple[tuple[int, int, float], ...] = ()
    dead: tuple[int | None, int | None] = (None, None)


def match(a: Floats, b: Floats, *, hungarian_max: int = HUNGARIAN_MAX) -> Match:
    """Match two sets of unit vectors one to one by cosine.

    Args:
        a: Unit vectors.  [latents, d]
        b: Unit vectors.  [other latents, d]
        hungarian_max: Maximum size of the larger side for the matching with the largest sum, which uses 12 bytes of
            memory per pair; above it, mutual nearest neighbours are found tile by tile.
    """
    import numpy as np

    if max(len(a), len(b)) <= hungarian_max:
        from scipy.optimize import linear_sum_assignment

        cosines = a @ b.T
        rows, columns = linear_sum_assignment(cosines, maximize=True)
        method = "hungarian"
    else:
        nearest = np.empty(len(a), dtype=np.int64)
        best, back = np.full(len(b), -np.inf, dtype=np.float32), np.zeros(len(b), dtype=np.int64)
        for start in range(0, len(a), _TILE):
            tile = a[start : start + _TILE] @ b.T
            nearest[start : start + len(tile)] = tile.argmax(axis=1)
            high = tile.max(axis=0)
            better = high > best
            best[better], back[better] = high[better], start + tile.argmax(axis=0)[better]
        rows = np.flatnonzero(back[nearest] == np.arange(len(a)))
        columns = nearest[rows]
        method = "mutual nearest neighbours"
    pairs = np.stack([rows, columns], axis=1).astype(np.int64)
    return Match(pairs, (a[pairs[:, 0]] * b[pairs[:, 1]]).sum(axis=1), method)


def compare_vectors(
    a: Floats, b: Floats, rng: np.random.Generator, *, hungarian_max: int = HUNGARIAN_MAX
) -> tuple[Match, float, float]:
    """Match two sets of vectors, and compute two baselines.

    Vectors of length 0 have cosine 0 with all others. Assumes that both sides share the same coordinates.

    Args:
        a: Vectors of any length.  [latents, d]
        b: Vectors of any length.  [other latents, d]
        rng: Random generator for the random vectors.
        hungarian_max: See `match`.

    Returns:
        The match; the mean cosine of random vectors with b's mean and covariance, matched in the same way; and the mean
        cosine of matched vectors with other vectors' partners (nan for fewer than two).
    """
    import numpy as np

    a, b = _units(a), _units(b)
    found = match(a, b, hungarian_max=hungarian_max)
    chosen = b[np.sort(rng.permutation(len(b))[:_MIXED])]
    mean, deviations = chosen.mean(axis=0), chosen - chosen.mean(axis=0)
    scale = max(1, len(chosen) - 1) ** 0.5
    drawn = [
        mean + rng.standard_normal((min(_TILE, len(b) - start), len(chosen)), dtype=np.float32) @ deviations / scale
        for start in range(0, len(b), _TILE)
    ]
    random = match(a, _units(np.concatenate(drawn)), hungarian_max=hungarian_max).score
    # Mean over all pairs of different matches, computed without the matrix of cosines.
    x, y = a[found.pairs[:, 0]], b[found.pairs[:, 1]]
    n = len(x)
    others = float(x.sum(axis=0, dtype=np.float64) @ y.sum(axis=0, dtype=np.float64)) - float(found.cosines.sum())
    return found, random, others / (n * (n - 1)) if n > 1 else float("nan")


def _units(vectors: Floats) -> Floats:
    import numpy as np

    vectors = np.asarray(vectors, dtype=np.float32)
    units: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return units


def similarities(
    references: Sequence[str | Path],
    *,
    by: Sequence[Basis] = (),
    model: str = EMBEDDER,
    seed: int = 0,
    embed: Embed | None = None,
    registry: Registry | None = None,
) -> tuple[list[Similarity], list[str]]:
    """Compare the latents of every pair of cells.

    Explanations are those of the runs' sampled latents. Directions are those of the whole coder, loaded as in the run's
    `spec.yaml`, without latents that never fire if the run's activations are cached. Plugins in single files are never
    run, because a run directory from someone else may name untrusted code.

    Args:
        references: `run`, for all its contestants, or `run:cell`.
        by: Bases of comparison; default: explanations, and decoder directions if every coder can be loaded.
        model: Sentence-transformers model that embeds explanations.
        seed: Seed of the baselines.
        embed: Function that embeds texts; default: the process's embedder.
        registry: Plugin registry; default: plugins of installed packages only.

    Returns:
        One similarity per pair of cells and basis (with the reason if they cannot be compared), and the reasons why
        bases were skipped.

    Raises:
        InputError: If there are fewer than two cells, or a basis in `by` is not available.
    """
    refuse_text("references", references)
    refuse_text("by", by)
    cells = [cell for reference in references for cell in _cells(reference)]
    if len(cells) < 2:
        raise InputError("similarity needs at least two cells; give several runs, or several `run:cell`")
    if twice := [label for label, _ in cells if [c for c, _ in cells].count(label) > 1]:
        raise InputError(f"{twice[0]}: is given twice; give each cell once")
    found: list[Similarity] = []
    left_out: list[str] = []
    for basis in by or BASES[:2]:
        try:
            vectors = [_vectors(cell, basis, model, embed or embedder(), registry) for _, cell in cells]
        except SaevalError as error:
            if basis in by:
                raise
            left_out.append(f"{basis}: {error}")
            continue
        for i, (a, _) in enumerate(cells):
            for j in range(i + 1, len(cells)):
                found.append(_pair(a, cells[j][0], basis, vectors[i], vectors[j], seed))
    if not found:
        raise InputError(f"nothing can be compared: {'; '.join(left_out)}")
    return found, left_out


def _cells(reference: str | Path) -> list[tuple[str, RunCell]]:
    path, name = split_reference(reference)
    _, cells = open_run(path, name)
    return [(f"{path}:{c.name}", c) for c in cells if name is not None or c.result.baseline is None]


class Vectors(NamedTuple):
    """Vectors to compare latents by.

    Attributes:
        latents: Their numbers.
        vectors: Their vectors.  [latents, d]
        dead: Number omitted because they never fire; None if unknown.
    """

    latents: list[int]
    vectors: Floats
    dead: int | None = None


def _vectors(cell: RunCell, basis: Basis, model: str, embed: Embed, registry: Registry | None) -> Vectors:
    """Return the numbers of a cell's latents and their vectors."""
    if basis == "explanations":
        if not cell.texts:
            raise InputError(f"{cell.folder}: has no explanations to embed")
        return Vectors(list(cell.texts), embed(model, list(cell.texts.values())))
    source = _source(cell, registry)
    weights = source.plugin.weights()
    directions = weights.directions() if basis == "decoder" else weights.encoder_directions()
    if directions is None:
        raise InputError(
            f"{cell.name}: coders of architecture {weights.architecture!r} have no {basis} directions to compare"
        )
    vectors: Floats = directions.detach().float().cpu().numpy()
    alive = _alive(source, len(vectors))
    if alive is None:
        return Vectors(list(range(len(vectors))), vectors)
    if not alive.any():
        raise InputError(f"{cell.name}: none of its latents fires on the run's corpus, so none can be compared")
    return Vectors(alive.nonzero()[0].tolist(), vectors[alive], int((~alive).sum()))


def _alive(source: Part[ActivationSource], latents: int) -> NDArray[np.bool_] | None:
    """Return which latents fire on a run's corpus; None if its activations are not cached."""
    try:
        store = ActivationStore.open(store_folder(source.identity))
    except (SaevalError, OSError):
        return None
    return None if store.n_latents != latents or store.latents is not None else store.firings > 0


class _Installed(Registry):
    """A registry of plugins from installed packages only."""

    def get(self, kind: str, name: str, *, base: Path | None = None) -> Loaded:
        """Return the plugin that a spec names; refuse code in single files."""
        if ".py:" in name:
            raise PluginError(
                f"{kind} {name!r} is code in a single file, which similarity never runs; use --by explanations"
            )
        return super().get(kind, name, base=base)


def _source(cell: RunCell, registry: Registry | None) -> Part[ActivationSource]:
    spec = cell.folder.parent.parent / "spec.yaml"
    if not spec.is_file():
        raise InputError(f"{spec}: does not exist, so the coder of {cell.name} cannot be loaded; use --by explanations")
    task: Task = load_task(spec, registry=registry or _Installed(), check=False)
    names = [c.name for c in task.cells]
    if cell.name not in names:
        raise InputError(f"{spec}: has no cell {cell.name!r}{did_you_mean(cell.name, names)}")
    return task.cells[names.index(cell.name)].source


def _pair(a: str, b: str, basis: Basis, one: Vectors, other: Vectors, seed: int) -> Similarity:
    latents_a, x, dead_a = one
    latents_b, y, dead_b = other
    sizes, dead = (len(latents_a), len(latents_b)), (dead_a, dead_b)
    if x.shape[1] != y.shape[1]:
        why = f"different spaces: {x.shape[1]} and {y.shape[1]} dimensions"
        return Similarity(a, b, basis, None, None, None, 0, sizes, why, dead=dead)
    found, random, shuffled = compare_vectors(x, y, derive_rng(seed, "similarity", basis, a, b))
    pairs = tuple(
        (latents_a[i], latents_b[j], round(float(c), 6)) for (i, j), c in zip(found.pairs, found.cosines, strict=True)
    )
    score, random_, shuffled_ = (value if value == value else None for value in (found.score, random, shuffled))
    return Similarity(a, b, basis, score, random_, shuffled_, len(pairs), sizes, found.method, pairs, dead)


def text(found: Sequence[Similarity]) -> str:
    """Return the similarities for a terminal: a table for two cells, a matrix for more."""
    parts = []
    for basis in dict.fromkeys(s.basis for s in found):
        of = [s for s in found if s.basis == basis]
        labels = list(dict.fromkeys(label for s in of for label in (s.a, s.b)))
        scores = {key: s for s in of for key in ((s.a, s.b), (s.b, s.a))}
        numbers = {label: str(i + 1) for i, label in enumerate(labels)}
        rows = []
        for a in labels:
            others = ["" if a == b else number(scores[a, b].score) for b in labels]
            rows.append([numbers[a], a, *others])
        parts.append(
            f"{basis}: mean cosine of matched latents\n{aligned(['', 'cell', *numbers.values()], rows, WIDTH)}"
        )
        head = ["pair", "score", "random", "shuffled", "matched", "latents", "dead", "how"]
        parts.append(aligned(head, [_row(s, numbers) for s in of], WIDTH))
    parts.append(
        fold(
            "random: vectors with the mean and covariance of the second cell's, matched in the same way; shuffled: "
            "matched latents with other latents' partners. A score near these shows no similarity. "
            "dead: latents that never fire on the run's corpus, which are skipped (?: its activations are not in "
            "the cache)."
        )
    )
    return "\n\n".join(parts)


def _row(s: Similarity, numbers: Mapping[str, str]) -> list[str]:
    dead = ", ".join("?" if n is None else str(n) for n in s.dead)
    return [
        f"{numbers[s.a]} {numbers[s.b]}",
        number(s.score),
        number(s.random),
        number(s.shuffled),
        str(s.matched),
        f"{s.latents[0]}, {s.latents[1]}",
        dead,
        s.method,
    ]
