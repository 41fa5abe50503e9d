"""Lists the work of a run once: every step on every latent, the key of its result, and its random stream.

The pipeline does this list, `plan` prices it, `preview` shows its prompts, the journal keeps its results under these
keys, and results are aggregated from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import JsonValue

from saeval._run import floors
from saeval._util import content_hash, derive_rng
from saeval.records import MAIN, LatentId
from saeval.task import SHUFFLED, Cell, StepPart, Task

if TYPE_CHECKING:
    import numpy as np

EXPLAIN = "explain"
"""Name of the step that makes an explanation; other steps are called by the label of their scorer."""


class Item(NamedTuple):
    """One work item: a step on one latent with one kind of explanation.

    Attributes:
        cell: Name of the cell.
        step: `explain`, or the label of a scorer.
        variant: Which explanation is made or scored: the cell's own, or a baseline by its name.
        latent: The latent.
    """

    cell: str
    step: str
    variant: str
    latent: LatentId


class StepWork(NamedTuple):
    """One step of a cell with one kind of explanation, and the latents it runs on.

    Attributes:
        step: `explain`, or the label of a scorer.
        variant: Which explanation is made or scored.
        part: The explainer or scorer.
        latents: Latents it runs on, in the cell's order.
        some: The same as a set, where they are not simply the first ones.
    """

    step: str
    variant: str
    part: StepPart[Any]
    latents: Sequence[int]
    some: frozenset[int] | None = None

    def includes(self, latent: int, place: int) -> bool:
        """Return whether the step runs on a latent, given its position in the cell's order."""
        return place < len(self.latents) if self.some is None else latent in self.some


def steps(cell: Cell, latents: Sequence[int], seed: int) -> Iterator[StepWork]:
    """Yield the steps of a cell, those that explain first.

    Args:
        cell: The cell.
        latents: All of its latents, or placeholders where only their number is known.
        seed: Seed of the run, by which the latents whose floor is judged are chosen.
    """
    explained = {variant: latents[: part.latents] for variant, part in cell.explainers.items()}
    for variant, explainer in cell.explainers.items():
        yield StepWork(EXPLAIN, variant, explainer, explained[variant])
    if SHUFFLED in cell.alternatives:
        explained[SHUFFLED] = explained[MAIN][: cell.shuffled_latents]
    halves: dict[int, frozenset[int]] = {}
    for label, part in cell.scorers.items():
        for variant in scored_variants(cell, label):
            chosen = explained[variant][: part.latents]
            if variant != SHUFFLED or cell.shuffled_latents is not None:
                yield StepWork(label, variant, part, chosen)
                continue
            half = halves.setdefault(len(chosen), floors.judged(chosen, seed))
            yield StepWork(label, variant, part, [latent for latent in chosen if latent in half], half)


def title(step: str, variant: str) -> str:
    """Return the name of a step as progress and messages show it."""
    return step if variant == MAIN or step != EXPLAIN else f"{step} ({variant})"


def scored_variants(cell: Cell, label: str) -> list[str]:
    """Return the kinds of explanations that a scorer scores, the cell's own first, in the cell's order."""
    part = cell.scorers[label]
    if not part.part.plugin.reads_explanation:
        return [MAIN]
    return [MAIN, *(name for name in cell.alternatives if part.baselines is None or name in part.baselines)]


def rng(seed: int, step: str, variant: str, latent: LatentId) -> np.random.Generator:
    """Return the random stream of an item. All explanations of a latent are scored with the same one."""
    if step == EXPLAIN:
        return derive_rng(seed, EXPLAIN, variant, str(latent))
    return derive_rng(seed, "score", step, str(latent))


class Keys:
    """The keys under which results are kept: hashes of everything that a result depends on.

    Args:
        task: The task.
        bases: By cell, a hash of what its records depend on.
    """

    def __init__(self, task: Task, bases: Mapping[str, str]):
        self._task, self._bases = task, bases
        self._cells = {cell.name: cell for cell in task.cells}
        self._identities: dict[tuple[str, str, str], JsonValue] = {}

    def of(self, item: Item, text: str = "") -> str:
        """Return the key of an item.

        Args:
            item: The item.
            text: The explanation that is scored.
        """
        base, latent, identity = self._bases[item.cell], str(item.latent), self._identity(item)
        if item.step == EXPLAIN:
            return content_hash(EXPLAIN, base, latent, item.variant, identity)
        return content_hash("score", base, latent, item.step, text, identity)

    def _identity(self, item: Item) -> JsonValue:
        """Return what makes the step: its plugin and the model it asks."""
        cell = self._cells[item.cell]
        place = (item.cell, item.step, item.variant if item.step == EXPLAIN else "")
        if place not in self._identities:
            part = cell.explainers[item.variant] if item.step == EXPLAIN else cell.scorers[item.step]
            role = self._task.roles[part.role].identity if part.role else None
            self._identities[place] = [part.part.identity, role]
        return self._identities[place]
