"""Returns the windows of a frozen run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.plugin import ActivationStore, Examples, LatentId, LatentRecord, Sampler, SpecPath
from saeval_plugins._frozen import read_frozen

if TYPE_CHECKING:
    import numpy as np


class FrozenSampler(Sampler):
    """Returns each latent's windows from a frozen run; requires the source `frozen`."""

    name = "frozen"

    path: SpecPath
    """The frozen run, `.jsonl.xz`."""

    def check(self) -> None:
        """Check that the file can be read."""
        read_frozen(self.path)

    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Return the recorded windows; nothing is drawn."""
        cell = read_frozen(self.path).cell(str(store.facts.get("frozen")), self.path)
        found = cell.latents.get(latent.index)
        if found is None:
            return None
        maximum = float(found.facts["max_activation"])

        def side(name: str) -> Examples:
            active, silent = (
                store.examples(latent, rows, store.length, [found.deciles.get(row) for row in rows])
                for rows in found.sides[name]
            )
            return Examples(latent, active, silent, maximum)

        return LatentRecord(
            latent,
            firings=int(found.facts["firings"]),
            windows=int(found.facts["windows"]),
            density=float(found.facts["density"]),
            explain=side("explain"),
            score=side("score"),
        )
