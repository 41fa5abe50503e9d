"""Whatever is in a run, each format that can be written can be read, and gives back what it holds."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import saeval
from saeval.exchange import FORMATS, export_run, import_run
from saeval.exchange.imported import Imported, ImportedCell, Scoring, write_run
from saeval.records import MAIN, Explanation, Outcome, Score
from saeval.records.metrics import CLASSIFICATION
from saeval.results import open_run

LATENTS = st.integers(0, 10**6)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=40).filter(
    lambda text: text == text.strip() and text.strip() != "Explanation could not be parsed."
)


@st.composite
def cells(draw, name):
    explained = draw(st.dictionaries(LATENTS, TEXTS, min_size=1, max_size=5))
    cell = ImportedCell({"coder": name}, f"layers.{draw(st.integers(0, 40))}", subject="some/model")
    cell.explanations = {(MAIN, latent): Explanation(text=text) for latent, text in explained.items()}
    scoring = cell.scorings["detection"] = Scoring("saeval/detection", CLASSIFICATION, judge="judge")
    for latent in explained:
        right = draw(st.booleans())
        judged = [
            Outcome(example="0:1", active=True, predicted=right, decile=1),
            Outcome(example="0:9", active=False, predicted=False),
        ]
        scoring.scores[latent] = Score.of(judged)
        cell.latents[latent] = {"firings": 9, "windows": 2, "density": draw(st.floats(1e-6, 1)), "max_activation": 2.5}
        cell.examples += [
            {
                "latent": latent, "role": role, "active": active, "decile": 1 if active else None, "context": k, "start": 0, "document": 0,
                "tokens": ["a", " word"], "token_ids": [1, 2], "activations": [0.0, 2.5] if active else [0.0, 0.0],
            }
            for role in ("explain", "score") for k, active in enumerate((True, False))
        ]  # fmt: skip
    return cell


def texts(run):
    """Explanations by cell, in the order of the cells' places and names."""
    return [cell.texts for cell in sorted(open_run(run)[1], key=lambda cell: cell.name)]


def scores(run):
    return [row.value for cell in sorted(saeval.read(run).cells, key=lambda cell: cell.cell) for row in cell.scores[:1]]


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=5, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(cell=cells("one"))
def test_what_a_format_holds_comes_back(format_, cell):
    folder = Path(tempfile.mkdtemp())
    try:
        write_run(Imported("a test", [cell]), "test", "made", folder / "run")
        names = {"model": "some-model", "source": "0-res"} if format_ == "neuronpedia" else {}
        export_run(folder / "run", format_, folder / "out", **names)
        import_run(folder / "out", format_, folder / "back")
        assert texts(folder / "back") == texts(folder / "run")
        if format_ in ("jsonl", "parquet", "saebench", "delphi"):
            assert all(map(math.isclose, scores(folder / "back"), scores(folder / "run")))
    finally:
        shutil.rmtree(folder)
