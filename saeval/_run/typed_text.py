"""Computes activations on user-typed text, with the models and coders of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saeval._util import InputError
from saeval.plugin.registry import Registry
from saeval.task import load_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TypedText:
    """The cells of a run whose source can read text, loaded from the run's spec.

    Args:
        run_dir: The run.

    Attributes:
        cells: Names of these cells.

    Raises:
        InputError: If there is none, or the spec, a model or a coder cannot be loaded.
    """

    def __init__(self, run_dir: Path):
        task = load_task(run_dir / "spec.yaml", registry=Registry())
        sources = {cell.name: cell.source.plugin for cell in task.cells}
        self._sources = {name: s for name, s in sources.items() if "text" in s.offers()}
        self.cells = [*self._sources]
        if not self.cells:
            raise InputError(f"{run_dir}: no cell of this run has a model that can read text")
        first = self._sources[self.cells[0]]
        if "subject" in first.offers():  # load the model before the first text is typed
            first.subject()

    def read(self, cell: str, latent: int, text: str) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Return a latent's activations on a text: for each context, its tokens and an activation per token.

        Raises:
            InputError: If there is no such latent, or the cell's coder cannot be loaded.
        """
        return self._sources[cell].activations_on(text, latent)
