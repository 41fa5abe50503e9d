"""Defines the work items of a run: every step on every latent, with the key of its result and its random stream.

The pipeline runs the items, `plan` estimates their cost, `preview` shows their prompts, and the journal stores their
results by these keys.
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
"""Name of the explaining step; scoring steps have the label of their scorer."""


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
        some: The same latents as a set, if they are not the first ones in the cell's order.
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
        latents: All of its latents, or placeholders if only their number is known.
        seed: Seed of the run, which determines the latents with a judged floor.
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


def part_of(cell: Cell, step: str, variant: str) -> StepPart[Any]:
    """Return the explainer or scorer of a step; `variant` is the explanation that it makes or scores."""
    return cell.explainers[variant] if step == EXPLAIN else cell.scorers[step]


def title(step: str, variant: str) -> str:
    """Return the name of a step for progress and messages."""
    return step if variant == MAIN or step != EXPLAIN else f"{step} ({variant})"


def scored_variants(cell: Cell, label: str) -> list[str]:
    """Return the variants of explanations that a scorer scores, the cell's own first if it is among them."""
    part = cell.scorers[label]
    if not part.part.plugin.reads_explanation:
        return [MAIN]
    others = [name for name in cell.alternatives if part.baselines is None or name in part.baselines]
    return [MAIN, *others] if part.own else others


def rng(seed: int, step: str, variant: str, latent: LatentId) -> np.random.Generator:
    """Return the random generator of an item; scoring uses the same one for all explanations of a latent."""
    if step == EXPLAIN:
        return derive_rng(seed, EXPLAIN, variant, str(latent))
    return derive_rng(seed, "score", step, str(latent))


class Keys:
    """Computes the keys of results: hashes of everything that a result depends on.

    Args:
        task: The task.
        bases: For each cell, a hash of everything that its records depend on.
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
        """Return the identities of the step's plugin and language model."""
        cell = self._cells[item.cell]
        place = (item.cell, item.step, item.variant if item.step == EXPLAIN else "")
        if place not in self._identities:
            part = part_of(cell, item.step, item.variant)
            role = self._task.roles[part.role].identity if part.role else None
            self._identities[place] = [part.part.identity, role]
        return self._identities[place]
