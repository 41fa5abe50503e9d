"""Runs leave for other tools' formats and come back: what is in the files is kept, what is not is said, nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from command import run_command
from hub_server import fake_hub
from hypothesis import HealthCheck, given, settings, strategies as st
from planted_run import spec, truthful_server
from root import ROOT

import saeval
from saeval import InputError, StoreError
from saeval.cli.group import main
from saeval.exchange.cards import is_shareable
from saeval.exchange.formats import EXPORTS, FORMATS, export_run, import_run
from saeval.exchange.hub import pull, push
from saeval.plugin.registry import Registry
from saeval.results import open_run
from saeval.testing.planted import planted_store

KEYS = (
    "activating",
    "prediction",
    "probability",
    "distance",
    "str_tokens",
    "activations",
    "description",
    "index",
    "layer",
)
NAMES = {"neuronpedia": {"model": "gemma-2-2b", "source": "9-res"}}


def puzzling(prompt):
    """One question to the judge in eight."""
    return prompt.startswith("Explanation:") and zlib.crc32(prompt.encode()) % 8 == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on planted latents of two cells, whose judge is not always understood."""
    place = tmp_path_factory.mktemp("run")
    before = os.environ.get("SAEVAL_CACHE")
    os.environ["SAEVAL_CACHE"] = str(place / "cache")
    try:
        with truthful_server() as server:
            truthful = server.reply
            server.reply = lambda m: "?" if puzzling(m[-1]["content"]) else truthful(m)
            scorers = {"detection": {"with": {"batch": 2}}, "fuzzing": {"when": {"latents": 3}}}
            source = {"use": "synthetic", "with": {"n_latents": 8, "documents": 60, "seed": "${matrix.seed}"}}
            changes = {"matrix": {"seed": [0, 1]}, "source": source, "baselines": ["random_explanation"]}
            saeval.run(spec(server, scorers=scorers, **changes), out=place / "run")
    finally:
        os.environ.pop("SAEVAL_CACHE")
        if before is not None:
            os.environ["SAEVAL_CACHE"] = before
    return place / "run"


def explanations(run_dir, cell):
    rows = [json.loads(line) for line in (run_dir / "cells" / cell / "explanations.jsonl").read_text().splitlines()]
    return {r["latent"]: r["text"] for r in rows if r["variant"] == "explanation" and r["status"] == "ok"}


def scores(run_dir, cell, scorer, metric="balanced_accuracy"):
    rows = pq.read_table(run_dir / "cells" / cell / "latents.parquet").to_pylist()
    return {r["latent"]: r[f"score.{scorer}.{metric}"] for r in rows if r[f"score.{scorer}.{metric}"] is not None}


def cells(run_dir):
    return [cell.cell for cell in saeval.read(run_dir).cells]


@pytest.mark.parametrize("format_", FORMATS)
def test_explanations_come_back_as_they_were(run, tmp_path, format_):
    lost = export_run(run, format_, tmp_path / "out", **NAMES.get(format_, {}))
    assert lost and all(sentence.endswith(".") for sentence in lost)
    result = import_run(tmp_path / "out", format_, tmp_path / "back")
    assert saeval.read(tmp_path / "back") == result
    ours, theirs = cells(run), cells(tmp_path / "back")
    assert len(ours) == len(theirs) == 2
    for cell, other in zip(sorted(ours), sorted(theirs), strict=True):
        expected = explanations(run, cell)
        if format_ == "saebench":  # it knows scored latents only
            expected = {i: text for i, text in expected.items() if i in scores(run, cell, "detection")}
        assert explanations(tmp_path / "back", other) == expected
    assert not result.reproducible and "cannot be reproduced from this directory" in result.warnings[0]
    assert str(tmp_path) not in (tmp_path / "back" / "results.json").read_text()
    head = json.loads((tmp_path / "back" / "run.json").read_text())
    assert head["status"] == "imported"
    assert (tmp_path / "back" / "report" / "report.md").exists()


@pytest.mark.parametrize("format_", ["delphi", "jsonl", "parquet"])
def test_scores_come_back_as_they_were(run, tmp_path, format_):
    export_run(run, format_, tmp_path / "out")
    result = import_run(tmp_path / "out", format_, tmp_path / "back")
    before = saeval.read(run)
    for cell, other in zip(sorted(cells(run)), sorted(cells(tmp_path / "back")), strict=True):
        for scorer in ("detection", "fuzzing"):
            for metric in ("balanced_accuracy", "f1", "accuracy"):
                expected = scores(run, cell, scorer, metric)
                assert scores(tmp_path / "back", other, scorer, metric) == pytest.approx(expected) and expected
        (first,), (second,) = (
            [r for c in x.cells if c.cell == name for r in c.scores
             if (r.scorer, r.variant, r.metric) == ("detection", "explanation", "balanced_accuracy")]
            for x, name in ((before, cell), (result, other))
        )  # fmt: skip
        for name in ("value", "median", "n", "tried", "failed", "unparsed", "coverage", "windows", "answered"):
            assert getattr(second, name) == pytest.approx(getattr(first, name)), name
        assert first.unparsed > 0


@pytest.mark.parametrize("format_", FORMATS)
def test_imported_run_has_every_table(run, tmp_path, format_):
    export_run(run, format_, tmp_path / "out", **NAMES.get(format_, {}))
    import_run(tmp_path / "out", format_, tmp_path / "back")
    back = saeval.read(tmp_path / "back")
    assert back.calls.num_rows == 0 and back.latents.num_rows and back.explanations.num_rows
    rows = back.latent_scores.to_pylist()
    assert bool(rows) == any(cell.scores for cell in back.cells)
    by_latent = {(row["cell"], row["latent"]): row for row in back.latents.to_pylist()}
    scored = [row for row in rows if row["value"] is not None]
    assert all(
        by_latent[row["cell"], row["latent"]][f"score.{row['scorer']}.{row['metric']}"] == row["value"]
        for row in scored
    )
    if format_ == "delphi":
        assert all(r["low"] <= r["value"] <= r["high"] for r in scored if r["metric"] == "balanced_accuracy")


def test_our_own_tables_keep_marks_that_others_lose(run, tmp_path):
    export_run(run, "jsonl", tmp_path / "own")
    assert import_run(tmp_path / "own", "jsonl", tmp_path / "a").synthetic
    lost = export_run(run, "delphi", tmp_path / "theirs")
    assert "synthetic, but the files are not marked" in lost[0]
    assert not import_run(tmp_path / "theirs", "delphi", tmp_path / "b").synthetic


@pytest.mark.parametrize("form", ["delphi", "saebench", "auto-interp-explanations", "jsonl"])
def test_latent_of_an_import_is_shown_although_its_firings_are_unknown(run, tmp_path, form):
    export_run(run, form, tmp_path / "files", cell=cells(run)[0])
    import_run(tmp_path / "files", form, tmp_path / "back")
    back = saeval.read(tmp_path / "back")
    latent = back.latents["latent"][0].as_py()
    assert ("density: –" in back.latent(latent).text) == (form != "jsonl")


def test_imported_explanations_can_be_scored_again(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    cell = cells(run)[0]
    export_run(run, "delphi", tmp_path / "out", cell=cell)
    import_run(tmp_path / "out", "delphi", tmp_path / "back")
    (other,) = cells(tmp_path / "back")
    precomputed = Registry().get("explainer", "precomputed").cls
    for path in (tmp_path / "back" / "cells" / other / "explanations.jsonl", tmp_path / "out" / "explanations"):
        assert precomputed(path=path).explanations == explanations(run, cell)
    own = run / "cells" / cell / "explanations.jsonl"
    assert "random_explanation" in own.read_text()
    one_each = {latent: [text] for latent, text in explanations(run, cell).items()}
    assert precomputed(path=own, choose=Registry().get("scorer", "embedding").cls()).candidates == one_each
    export_run(run, "jsonl", tmp_path / "own", cell=cell)
    assert precomputed(path=tmp_path / "own" / "explanations.jsonl").explanations == explanations(run, cell)


# --- Delphi ---


def test_delphi_files_are_as_delphi_writes_them(run, tmp_path):
    cell = cells(run)[0]
    export_run(run, "delphi", tmp_path / "out", cell=cell)
    latent, text = next(iter(explanations(run, cell).items()))
    assert json.loads((tmp_path / "out" / "explanations" / f"planted_latent{latent}.txt").read_text()) == text
    items = json.loads(next((tmp_path / "out" / "scores" / "fuzz").glob("planted_latent*.txt")).read_text())
    assert set(items[0]) == {
        "str_tokens", "activations", "distance", "activating", "prediction", "probability", "correct"
    }  # fmt: skip
    shown = [item for item in items if item["activating"]]
    assert all(len(i["str_tokens"]) == len(i["activations"]) == 32 for i in items)
    assert all(0 <= i["distance"] <= 9 and max(i["activations"]) > 0 for i in shown)
    assert {i["distance"] for i in items if not i["activating"]} <= {-1, *range(10)}


def delphi_folder(root, name="layers.1_latent7.txt", explanation='"a word"', items=None):
    """A results folder as Delphi writes it."""
    window = {
        "str_tokens": [" a", " b"],
        "activations": [0.0, 1.5],
        "distance": 1,
        "probability": None,
        "correct": True,
    }
    items = [
        {**window, "activating": True, "prediction": True},
        {**window, "activating": False, "prediction": False, "distance": -1, "activations": [0.0, 0.0]},
        {**window, "activating": False, "prediction": True, "distance": -1},
        {**window, "activating": True, "prediction": None, "correct": None},
    ] if items is None else items  # fmt: skip
    for folder, content in (("explanations", explanation), ("scores/detection", json.dumps(items))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(content)
    (root / "run_config.json").write_text(json.dumps({"model": "some/model", "explainer_model": "some/judge"}))
    return root


@pytest.mark.parametrize("first", [0, 1], ids=["main", "the paper's code"])
def test_delphi_quantiles_are_deciles_whichever_number_the_strongest_has(tmp_path, first):
    window = {"str_tokens": [" a"], "activations": [1.0], "probability": None}
    items = [
        {**window, "distance": first + q, "activating": True, "prediction": q < 7, "correct": q < 7} for q in range(10)
    ]
    items.append({**window, "distance": -1, "activating": False, "prediction": False, "correct": True})
    delphi_folder(tmp_path / "d", "layers.1_latent7.txt", items=items)
    delphi_folder(tmp_path / "d", "layers.1_latent9.txt", items=[items[3], items[10]])  # of itself it tells nothing
    (cell,) = import_run(tmp_path / "d", "delphi", tmp_path / "run").cells
    (shares,) = cell.deciles
    assert shares.right == (1.0,) * 7 + (0.0,) * 3 and shares.n == (1, 1, 1, 2, 1, 1, 1, 1, 1, 1)
    assert (shares.negatives_right, shares.negatives_n) == (1.0, 2)


def test_delphi_scores_are_what_their_windows_say(tmp_path):
    root = delphi_folder(tmp_path / "d")
    delphi_folder(root, "layers.10_latent7.txt", '"Explanation could not be parsed."')
    result = import_run(root, "delphi", tmp_path / "run")
    one, ten = result.cells
    assert (one.coder["hookpoint"], ten.coder["hookpoint"]) == ("layers.1", "layers.10")  # never mixed up
    assert one.subject == "some/model" and "some/judge" in one.explainer
    row = one.scores[0]
    assert (row.metric, row.value, row.unparsed) == ("balanced_accuracy", 0.75, 1)
    assert row.answered == row.windows - 1 > 0 and row.unanswered > 0
    assert ten.counts["explained"] == 0 and one.counts["explained"] == 1


def test_each_delphi_judgement_belongs_to_the_window_that_its_scorer_showed(run, tmp_path):
    export_run(run, "delphi", tmp_path / "d", cell=cells(run)[0])
    files = {}
    for file in (tmp_path / "d" / "scores").glob("*/*.txt"):
        items = json.loads(file.read_text())
        if file.parent.name == "fuzz":  # Delphi shuffles the windows of each scorer
            items = items[::-1]
            file.write_text(json.dumps(items))
        label = {"fuzz": "fuzzing"}.get(file.parent.name, file.parent.name)
        files[label, int(file.stem.rpartition("_latent")[2])] = items
    import_run(tmp_path / "d", "delphi", tmp_path / "back")
    (back,) = open_run(tmp_path / "back")[1]
    assert {label for label, _ in files} == {"detection", "fuzzing"}
    for (label, latent), items in files.items():
        judged = back.judged(label)[latent]
        shown = [back.windows[latent, row["example"]] for row in judged]
        assert [row["tokens"] for row in shown] == [item["str_tokens"] for item in items]
        assert [row["active"] for row in judged] == [item["activating"] for item in items]
        assert len({row["example"] for row in judged}) == len(items)
    assert len(back.windows) == len(back.examples)  # a window that two scorers show is kept once
    shared = {(latent, str(i["str_tokens"]), str(i["activations"])) for (_, latent), of in files.items() for i in of}
    assert len(shared) <= len(back.examples) < sum(map(len, files.values()))


def test_scorers_without_windows_are_skipped_and_said(tmp_path):
    root = delphi_folder(tmp_path / "d")
    (root / "scores" / "simulation").mkdir()
    (root / "scores" / "simulation" / "layers.1_latent7.txt").write_text('[{"ev_correlation_score": 0.5}]')
    result = import_run(root, "delphi", tmp_path / "run")
    assert any("scores/simulation" in warning for warning in result.warnings)
    assert {row.scorer for row in result.cells[0].scores} == {"detection"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"explanation": '"cut sho'}, "is not JSON"),
        ({"explanation": "[1]"}, "one JSON string"),
        ({"items": {"a": 1}}, "JSON list of windows"),
        ({"items": [{"activating": "yes", "prediction": True}]}, "activating must be true or false"),
        ({"items": [{"activating": True, "prediction": 2}]}, "activating must be true or false"),
        (
            {"items": [{"activating": True, "prediction": True, "probability": "p"}]},
            "probability must be between 0 and 1",
        ),
        ({"explanation": "[" * 100_000}, "nested too deeply"),
    ],
)
def test_damaged_delphi_file_is_one_sentence_and_leaves_nothing_behind(tmp_path, changes, sentence):
    root = delphi_folder(tmp_path / "d", **changes)
    with pytest.raises(InputError, match=sentence):
        import_run(root, "delphi", tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


# --- Neuronpedia ---


def test_neuronpedia_file_holds_requests_that_the_site_would_take(run, tmp_path):
    with pytest.raises(InputError, match="give --model and --source"):
        export_run(run, "neuronpedia", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_run(run, "neuronpedia", tmp_path / "out", cell=cells(run)[0], **NAMES["neuronpedia"])
    (file,) = (tmp_path / "out").glob("*.jsonl")
    (body,) = map(json.loads, file.read_text().splitlines())
    assert (body["modelId"], body["source"]) == ("gemma-2-2b", "9-res") and len(body["features"]) <= 128
    texts = explanations(run, cells(run)[0])
    for feature in body["features"]:
        assert isinstance(feature["index"], str) and feature["explanations"] == [{"text": texts[int(feature["index"])]}]
        peaks = [max(a["values"]) for a in feature["activations"]]
        assert peaks == sorted(peaks, reverse=True) and peaks[-1] > 0
        assert all(len(a["tokens"]) == len(a["values"]) for a in feature["activations"])


def np_rows(tmp_path, rows):
    import gzip

    folder = tmp_path / "np" / "explanations"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "batch-0.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path / "np"


def np_row(index="5", description="ships", **changes):
    return {
        "id": "x", "modelId": "gemma-2-2b", "layer": "9-res", "index": index, "authorId": "a", "description": description,
        "embedding": [0.0] * 4, "typeName": "oai_token-act-pair", "explanationModelName": "some-model", **changes,
    }  # fmt: skip


def test_neuronpedia_export_gives_explanations_and_keeps_further_ones(tmp_path):
    rows = [np_row(), np_row(description="boats"), np_row(description="sails"), np_row("6", "trees"), np_row("7", " ")]
    result = import_run(np_rows(tmp_path, rows), "neuronpedia", tmp_path / "run")
    (cell,) = result.cells
    assert explanations(tmp_path / "run", cell.cell) == {5: "ships", 6: "trees"}
    kept = (tmp_path / "run" / "cells" / cell.cell / "explanations.jsonl").read_text()
    assert "boats" in kept and "sails" in kept
    assert cell.subject == "gemma-2-2b" and cell.explainer == "oai_token-act-pair with some-model"
    precomputed = Registry().get("explainer", "precomputed").cls
    path = tmp_path / "run" / "cells" / cell.cell / "explanations.jsonl"
    assert precomputed(path=path).explanations == {5: "ships", 6: "trees"}
    best_of_n = precomputed(path=path, choose=Registry().get("scorer", "embedding").cls())
    best_of_n.check()
    assert best_of_n.candidates == {5: ["ships", "boats", "sails"], 6: ["trees"]}
    assert not cell.scores and any("1 empty explanation" in w for w in result.warnings)


def test_report_of_an_import_without_scores_says_that_there_are_none(tmp_path):
    import_run(np_rows(tmp_path, [np_row(), np_row("6", "trees")]), "neuronpedia", tmp_path / "run")
    shown = CliRunner().invoke(main, ["report", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    said = {"terminal": shown.stdout, "notebook": saeval.read(tmp_path / "run")._repr_html_()}
    said |= {name: (tmp_path / "run" / "report" / name).read_text() for name in ("report.md", "index.html")}
    for where, text in said.items():
        assert "no scores" in text and "balanced" not in text and "shuffled" not in text, where
    ranked = CliRunner().invoke(main, ["leaderboard", str(tmp_path / "run")])
    assert ranked.exit_code == 2 and "there are no scores to rank" in ranked.stderr


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (np_row("../../x"), "a latent should be a whole number"),
        (np_row(True), "a latent should be a whole number"),
        (np_row(description=["a"]), "must be an explanation"),
        ({"index": "5", "tokens": []}, "give a file of explanations"),
        ("text", "must be an explanation"),
    ],
)
def test_malformed_neuronpedia_row_is_one_sentence(tmp_path, row, sentence):
    with pytest.raises(InputError, match=sentence):
        import_run(np_rows(tmp_path, [np_row(), row]), "neuronpedia", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_an_import_lacks_are_not_recommended(tmp_path):
    delphi_folder(tmp_path / "d")
    import_run(tmp_path / "d", "delphi", tmp_path / "run")
    for weights in ("firing_rate", "energy"):
        done = CliRunner().invoke(main, ["leaderboard", str(tmp_path / "run"), "--weights", weights])
        assert done.exit_code == 2 and "the files that it was imported from have no firing rates" in done.stderr
        assert "--weights firing_rate" not in done.stderr


def test_scores_of_a_delphi_import_leave_for_neuronpedia(run, tmp_path):
    export_run(run, "delphi", tmp_path / "d", cell=cells(run)[0])
    import_run(tmp_path / "d", "delphi", tmp_path / "back")
    lost = export_run(tmp_path / "back", "neuronpedia", tmp_path / "np", **NAMES["neuronpedia"])
    (file,) = (tmp_path / "np" / "scores").glob("*.jsonl")
    types = {json.loads(line)["explanationScoreTypeName"] for line in file.read_text().splitlines()}
    assert types == {"eleuther_recall", "eleuther_fuzz"} and not any("no type of score" in said for said in lost)


# --- SAEBench ---

_STRING = {"anyOf": [{"type": "string"}, {"type": "null"}]}
SAEBENCH = {
    "type": "object",
    "required": [
        "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics", "sae_bench_commit_hash", "sae_lens_id",
        "sae_lens_release_id", "sae_lens_version",
    ],
    "properties": {
        "eval_type_id": {"const": "autointerp"},
        "eval_config": {
            "type": "object",
            "required": ["model_name"],
            "properties": {
                "model_name": {"type": "string"}, "n_latents": {"type": "integer"},
                "override_latents": {"type": "array", "items": {"type": "integer"}}, "random_seed": {"type": "integer"},
            },
        },
        "eval_id": {"type": "string"},
        "datetime_epoch_millis": {"type": "integer", "minimum": 0, "maximum": 9999999999999},
        "eval_result_metrics": {
            "type": "object", "required": ["autointerp"], "additionalProperties": False,
            "properties": {
                "autointerp": {
                    "type": "object", "required": ["autointerp_score", "autointerp_std_dev"], "additionalProperties": False,
                    "properties": {"autointerp_score": {"type": "number"}, "autointerp_std_dev": {"type": "number"}},
                }
            },
        },
        "eval_result_details": {"type": "array", "maxItems": 0},
        "sae_bench_commit_hash": {"type": "string"},
        "sae_lens_id": _STRING, "sae_lens_release_id": _STRING, "sae_lens_version": _STRING,
        "sae_cfg_dict": {"type": "object"},
        "eval_result_unstructured": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["latent", "explanation", "predictions", "correct seqs", "score", "logs"],
                "properties": {
                    "latent": {"type": "integer"}, "explanation": {"type": "string"}, "logs": {"type": "string"},
                    "predictions": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "correct seqs": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "score": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
    },
}  # fmt: skip
"""What SAEBench requires of a result, from its classes."""


def test_saebench_document_has_what_its_schema_requires(run, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    export_run(run, "saebench", tmp_path / "out")
    for cell in cells(run):
        document = json.loads((tmp_path / "out" / f"{cell}_eval_results.json").read_text())
        jsonschema.validate(document, SAEBENCH)
        given = scores(run, cell, "detection", "accuracy")
        metrics = document["eval_result_metrics"]["autointerp"]
        assert metrics["autointerp_score"] == pytest.approx(sum(given.values()) / len(given))
        for key, row in document["eval_result_unstructured"].items():
            hits = set(row["predictions"]) ^ set(row["correct seqs"])
            assert row["score"] == given[int(key)] and (not hits) == (row["score"] == 1)
    back = import_run(tmp_path / "out", "saebench", tmp_path / "back")
    assert "come from saeval" in back.warnings[0] and not any("14 windows" in said for said in back.warnings)
    theirs = json.loads((tmp_path / "out" / f"{cells(run)[0]}_eval_results.json").read_text())
    (tmp_path / "theirs_eval_results.json").write_text(json.dumps({**theirs, "sae_bench_commit_hash": "0a1b2c"}))
    others = import_run(tmp_path / "theirs_eval_results.json", "saebench", tmp_path / "theirs").warnings
    assert "come from SAEBench" in others[0] and any("14 windows" in said for said in others)
    assert [r.metric for r in back.cells[0].scores] == ["accuracy"]
    assert sorted(r.value for c in back.cells for r in c.scores) == pytest.approx(
        sorted(r.value for c in saeval.read(run).cells for r in c.scores
               if (r.scorer, r.variant, r.metric) == ("detection", "explanation", "accuracy"))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "not a result of SAEBench's autointerp"),
        ({"eval_type_id": "core"}, "not a result of SAEBench's autointerp"),
        ({"eval_type_id": "autointerp", "eval_result_unstructured": {}}, "no results per latent"),
        ({"eval_type_id": "autointerp", "eval_result_unstructured": {"x": {"explanation": ""}}}, "whole number"),
        ({"eval_type_id": "autointerp", "eval_result_unstructured": {"1": []}}, "has no explanation"),
        ({"eval_type_id": "autointerp", "eval_result_unstructured": {"1": {"explanation": "a", "score": 7}}}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_other_document_than_saebenchs_is_one_sentence(tmp_path, document, sentence):
    (tmp_path / "a_eval_results.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=sentence):
        import_run(tmp_path / "a_eval_results.json", "saebench", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- auto_interp_explanations ---


@pytest.mark.parametrize(
    "body", [{"3": "ships", "9": "trees"}, {"3": {"explanation": "ships"}, "9": {"text": "trees"}},
             [{"latent": 3, "explanation": "ships"}, {"feature": "9", "description": "trees"}]],
)  # fmt: skip
def test_every_known_form_of_explanation_files_is_read(tmp_path, body):
    folder = tmp_path / "Gemma" / "16k" / "res"
    folder.mkdir(parents=True)
    (folder / "model.layers.10_feature.json").write_text(json.dumps(body))
    result = import_run(tmp_path / "Gemma", "auto-interp-explanations", tmp_path / "run")
    (cell,) = result.cells
    assert cell.coder["hookpoint"] == "model.layers.10" and cell.axes["folder"] == "16k/res"
    assert explanations(tmp_path / "run", cell.cell) == {3: "ships", 9: "trees"}


@pytest.mark.parametrize("body", ['{"3": 5}', '{"3": {"words": "x"}}', '"text"', '{"x": "ships"}', '{"3": ', "{}"])
def test_unknown_form_of_explanation_files_is_refused(tmp_path, body):
    (tmp_path / "a_feature.json").write_text(body)
    with pytest.raises(InputError, match="a_feature.json"):
        import_run(tmp_path / "a_feature.json", "auto-interp-explanations", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- hostile and damaged ---


def test_names_from_files_never_lead_out_of_the_folder(run, tmp_path):
    evil = tmp_path / "evil"
    shutil.copytree(run, evil)
    data = json.loads((evil / "results.json").read_text())
    for cell in data["cells"]:
        cell["coder"]["hookpoint"] = "../../../outside"
    (evil / "results.json").write_text(json.dumps(data))
    for format_ in FORMATS:
        names = {"model": "m", "source": "../../out"} if format_ == "neuronpedia" else {}
        export_run(evil, format_, tmp_path / "deep" / "er" / format_, **names)
    import_run(tmp_path / "deep" / "er" / "delphi", "delphi", tmp_path / "deep" / "er" / "back")
    assert {p.name for p in tmp_path.iterdir()} == {"evil", "deep"}
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"er"}
    files = [p for p in (tmp_path / "deep").rglob("*_latent*.txt")]
    assert files and all(p.name.startswith("__--") for p in files)
    data["cells"][0]["cell"] = "../../run"
    (evil / "results.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="not a folder name"):
        export_run(evil, "delphi", tmp_path / "x")
    rows = [np_row(layer="../../../outside", modelId="/etc")]
    result = import_run(np_rows(tmp_path, rows), "neuronpedia", tmp_path / "deep" / "np-run")
    assert "/" not in result.cells[0].cell
    assert {p.name for p in tmp_path.iterdir()} == {"evil", "deep", "np"}


@pytest.mark.parametrize("file", ["latents.parquet", "judgements.parquet", "explanations.jsonl"])
def test_run_with_a_damaged_or_missing_file_is_not_exported(run, tmp_path, file):
    bad = tmp_path / "bad"
    shutil.copytree(run, bad)
    at = bad / "cells" / cells(run)[0] / file
    at.write_bytes(at.read_bytes()[:-30])
    with pytest.raises(InputError, match=file.partition(".")[0]):
        export_run(bad, "jsonl", tmp_path / "out")
    at.unlink()
    with pytest.raises(InputError, match=file.partition(".")[0]):
        export_run(bad, "jsonl", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_nothing_that_is_there_is_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    for call in (
        lambda: export_run(run, "jsonl", tmp_path / "out"),
        lambda: import_run(delphi_folder(tmp_path / "d"), "delphi", tmp_path / "out"),
        lambda: push(run, str(tmp_path / "out")),
        lambda: pull(str(tmp_path / "d"), tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="already exists"):
            call()
    assert (tmp_path / "out" / "precious").read_text() == "x"


@pytest.mark.parametrize(
    ("table", "change", "sentence"),
    [
        ("scores", {"value": 7.0}, "lies outside 0.0 to 1.0"),
        ("scores", {"latent": "../x"}, "whole number"),
        ("explanations", {"status": "great"}, "not a row of explanations"),
        ("judgements", {"active": "perhaps"}, "not a row of judgements"),
        ("judgements", {"decile": 10}, "not a row of judgements"),
        ("judgements", {"decile": -1}, "not a row of judgements"),
    ],
)
def test_malformed_table_is_one_sentence(run, tmp_path, table, change, sentence):
    export_run(run, "jsonl", tmp_path / "out")
    file = tmp_path / "out" / f"{table}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2].update(change)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=sentence):
        import_run(tmp_path / "out", "jsonl", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    file.write_text('{"latent": 1}\n')
    with pytest.raises(InputError, match=f"{table}.jsonl:1: must have the columns"):
        import_run(tmp_path / "out", "jsonl", tmp_path / "run")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_files_an_import_is_whole_or_not_there(run, tmp_path, format_, data):
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    value = data.draw(JSON)
    if format_ == "delphi":
        source = delphi_folder(
            place / "in", items=[{**value, "prediction": None}] if isinstance(value, dict) else value
        )
    elif format_ == "neuronpedia":
        source = np_rows(place, [{**np_row(), **value} if isinstance(value, dict) else value])
    elif format_ in ("jsonl", "parquet"):
        format_, source = "jsonl", place / "in"
        export_run(run, "jsonl", source)
        file = source / f"{data.draw(st.sampled_from(['about', 'latents', 'explanations', 'scores', 'judgements']))}"
        file = file.with_suffix(".json" if file.name == "about" else ".jsonl")
        row = json.loads(file.read_text() if file.name == "about.json" else file.read_text().splitlines()[0])
        key = data.draw(st.sampled_from(sorted(row)))
        file.write_text(json.dumps({**row, key: value}))
    else:
        source = place / "x_feature.json"
        unstructured = {
            "eval_type_id": "autointerp",
            "eval_result_unstructured": {"1": {"explanation": "a", "score": value}},
        }
        source.write_text(json.dumps(unstructured if format_ == "saebench" else {"3": value}))
    try:
        result = import_run(source, format_, place / "run")
    except InputError:
        assert not (place / "run").exists()
    else:
        assert saeval.read(place / "run").run_id == result.run_id
        assert (place / "run" / "report" / "report.md").exists()
    assert len(list(place.iterdir())) <= 2


# --- push and pull ---


def test_pushed_run_is_the_run_and_names_nothing_of_this_machine(run, tmp_path):
    push(run, str(tmp_path / "sent"))
    assert pull(str(tmp_path / "sent"), tmp_path / "back") == "run"
    assert saeval.read(tmp_path / "back") == saeval.read(run)
    for cell in cells(run):
        assert explanations(tmp_path / "back", cell) == explanations(run, cell)
        assert (tmp_path / "back" / "cells" / cell / "examples.parquet").exists()
    export_run(tmp_path / "back", "jsonl", tmp_path / "tables")
    names = {p.name for p in (tmp_path / "sent").rglob("*")}
    assert not names & {"journal.jsonl", "calls.jsonl", "spec.yaml", "run.log", "run.json"}
    text = b"".join(p.read_bytes() for p in (tmp_path / "sent").rglob("*") if p.is_file())
    assert str(run.parent).encode() not in text


@pytest.mark.parametrize("how", ["imported", "fetched"])
def test_run_that_cannot_be_made_again_is_never_overwritten(run, tmp_path, how):
    out = tmp_path / "out"
    if how == "fetched":
        push(run, str(tmp_path / "sent"))
        pull(str(tmp_path / "sent"), out)
    else:
        export_run(run, "jsonl", tmp_path / "files")
        import_run(tmp_path / "files", "jsonl", out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="contains an imported or fetched run, which would be overwritten"):
        saeval.run("quickstart-recorded", out=out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_pushed_run_is_a_data_set(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    push(run, str(tmp_path / "sent"))
    card = (tmp_path / "sent" / "README.md").read_text()
    configs = yaml.safe_load(card.split("---")[1])["configs"]
    assert [c["config_name"] for c in configs] == ["latents", "explanations", "scores", "judgements"]
    for config in configs:
        assert pq.read_table(tmp_path / "sent" / config["data_files"]).num_rows > 0
    assert card.split("---")[2].strip().startswith("# planted 1.0 (synthetic")


def test_card_shows_the_board_with_intervals_floors_and_judge_and_how_to_repeat(run, tmp_path):
    push(run, str(tmp_path / "sent"))
    card = (tmp_path / "sent" / "README.md").read_text()
    row = saeval.read(run).cells[0].scores[0]
    shown = f"{row.value:.3f} | {row.ci95[0]:.3f} to {row.ci95[1]:.3f}"
    for said in (shown, "random\\_explanation", "This judge was not checked", "saeval pull"):
        assert said in card
    assert "spec.yaml is not included" in card and not (tmp_path / "sent" / "run" / "spec.yaml").exists()
    shutil.copytree(run, tmp_path / "clean")
    (tmp_path / "clean" / "spec.yaml").write_text("saeval: 1\nsource: {use: synthetic}\n")
    push(tmp_path / "clean", str(tmp_path / "again"))
    pull(str(tmp_path / "again"), tmp_path / "back")
    assert (tmp_path / "back" / "spec.yaml").read_text() == (tmp_path / "clean" / "spec.yaml").read_text()
    assert "saeval run fetched/spec.yaml" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    ("value", "fine"),
    [("google/gemma-2-2b", True), ("/data/sae", False), ("~/sae", False), ("./x", False), ("..\\x", False),
     ("C:/x", False), ("http://10.0.0.1/v1", False), (3, True)],
)  # fmt: skip
def test_spec_that_names_the_machine_is_not_shared(value, fine):
    assert is_shareable({"matrix": {"coder": [{"with": {"path": value}}]}}) == fine


def test_pushed_store_is_the_store(tmp_path):
    store = planted_store(tmp_path / "store", n_latents=3, documents=10)
    push(tmp_path / "store", str(tmp_path / "sent"))
    assert pull(str(tmp_path / "sent"), tmp_path / "back") == "store"
    back = saeval.plugin.ActivationStore.open(tmp_path / "back", verify=True)
    assert back.manifest == store.manifest
    source = Registry().get("source", "recorded").cls(path=tmp_path / "back")
    source.check()
    value = tmp_path / "store" / "value.npy"
    value.write_bytes(value.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StoreError):
        push(tmp_path / "store", str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()
    with pytest.raises(InputError, match="neither a run directory"):
        push(tmp_path / "nowhere", str(tmp_path / "again"))


def test_what_was_damaged_on_the_way_is_not_taken(run, tmp_path):
    push(run, str(tmp_path / "sent"))
    file = tmp_path / "sent" / "run" / "results.json"
    whole = file.read_bytes()
    for spoiled in (whole[:-5], whole.replace(b"planted", b"planned")):
        file.write_bytes(spoiled)
        with pytest.raises(InputError, match="differs from the file that was sent"):
            pull(str(tmp_path / "sent"), tmp_path / "back")
    file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        pull(str(tmp_path / "sent"), tmp_path / "back")
    file.write_bytes(whole)
    index = json.loads((tmp_path / "sent" / "saeval.json").read_text())
    (tmp_path / "outside").write_text("x")
    for name in ("run/../../outside", "../outside", "/etc/hostname", "run//x", "run/./x", "run\\..\\x"):
        hostile = {**index, "files": {**index["files"], name: {"bytes": 1, "sha256": ""}}}
        (tmp_path / "sent" / "saeval.json").write_text(json.dumps(hostile))
        with pytest.raises(InputError, match="not a file inside it"):
            pull(str(tmp_path / "sent"), tmp_path / "back")
    for other in ({}, [], {**index, "kind": "other"}, {**index, "files": 5}):
        (tmp_path / "sent" / "saeval.json").write_text(json.dumps(other))
        with pytest.raises(InputError, match="saeval.json"):
            pull(str(tmp_path / "sent"), tmp_path / "back")
    assert {p.name for p in tmp_path.iterdir()} == {"sent", "outside"}


@pytest.mark.parametrize(
    "text", ["hf://models/a/b", "hf://datasets/a", "hf://datasets/../b", "hf:x", "hf://datasets/a/b/c"]
)
def test_address_on_the_hub_that_is_none_is_one_sentence(tmp_path, text):
    with pytest.raises(InputError, match="hf://datasets/OWNER/NAME"):
        pull(text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def command(*arguments, cwd, code=0, **env):
    own = {"SAEVAL_CACHE": str(cwd / "cache"), "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "0"}
    return run_command(*arguments, cwd=cwd, env={**own, **env}, code=code)


@pytest.mark.slow
def test_run_goes_to_the_hub_and_comes_back(run, tmp_path):
    secret = "hf_" + "s3cret" * 5
    with fake_hub() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": secret}
        sent = command("push", run, "hf://datasets/me/results", "--json", cwd=tmp_path, **env)
        assert json.loads(sent.stdout)["dest"] == "hf://datasets/me/results"
        made = hub.created[0]  # older clients say `private`
        assert made["name"] == "results" and (made.get("visibility") == "private" or made.get("private") is True)
        shown = {t for path, t in zip(hub.paths, hub.tokens, strict=True) if "datasets/me" in path or "create" in path}
        assert shown == {f"Bearer {secret}"}
        assert "me/results/run/results.json" in hub.files and "me/results/README.md" in hub.files
        assert not any(secret.encode() in body for body in hub.files.values())
        asked = len(hub.paths)
        got = command("pull", "hf://datasets/me/results", "back", cwd=tmp_path, **{**env, "HF_TOKEN": ""})
        assert "(run)" in got.stdout
        assert set(hub.tokens[asked:]) == {None}  # a token that is not in the environment is not used
        assert saeval.read(tmp_path / "back") == saeval.read(run)
        command("board", "add", "hf://datasets/me/results", cwd=tmp_path, **env)
        index = json.loads((tmp_path / "board" / "board.json").read_text())
        assert [facts["from"] for facts in index["runs"].values()] == ["hf://datasets/me/results"]
        hub.files["me/results/run/results.json"] += b" "
        bad = command("pull", "hf://datasets/me/results", "bad", cwd=tmp_path, code=2, **env)
        assert "differs from the file that was sent" in bad.stderr
        missing = command("pull", "hf://datasets/me/nothing", "bad", cwd=tmp_path, code=2, **env)
        assert "the hub answered 404" in missing.stderr
        hub.forbid = True
        refused = command("push", run, "hf://datasets/me/results", cwd=tmp_path, code=2, **env)
        assert "the hub answered 403" in refused.stderr and secret not in refused.stdout + refused.stderr
        unsaid = command("push", run, "hf://datasets/me/results", cwd=tmp_path, code=2, **{**env, "HF_TOKEN": ""})
        assert "set HF_TOKEN" in unsaid.stderr
    assert not (tmp_path / "bad").exists()


# --- the command line ---


def test_commands_say_what_they_did_and_have_json_twins(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        done = CliRunner().invoke(main, [*map(str, arguments)])
        assert done.exit_code == code, done.output
        return done

    said = call("export", run, "--format", "delphi", "--out", "d")
    assert "written   d" in said.stdout and "synthetic, but the files are not marked" in said.stderr
    twin = json.loads(call("export", run, "-f", "delphi", "--out", "e", "--json").stdout)
    assert twin["warnings"] and any(name.endswith(".txt") for name in twin["files"])
    assert "cells, " in call("import", "d", "--format", "delphi", "--out", "r").stdout
    twin = json.loads(call("import", "d", "-f", "delphi", "--out", "s", "--json").stdout)
    assert twin["reproducible"] is False and "cannot be reproduced from this directory" in twin["warnings"][0]
    assert "detection" in call("report", "r").stdout
    assert json.loads(call("push", "r", "sent", "--json").stdout) == {"dest": "sent"}
    assert json.loads(call("pull", "sent", "got", "--json").stdout) == {"kind": "run", "out": "got"}
    for arguments, sentence in (
        (["export", "nowhere", "-f", "jsonl", "--out", "x"], "no results.json there"),
        (["export", run, "-f", "jsonl", "--out", "x", "--cell", "sed=0"], "no cell 'sed=0', did you mean 'seed=0'?"),
        (["export", run, "-f", "delfi", "--out", "x"], "delfi"),
        (["import", "nowhere", "-f", "jsonl", "--out", "x"], "no such file or folder"),
        (["pull", "nowhere", "x"], "cannot be read"),
    ):
        assert sentence in call(*arguments, code=2).stderr
    assert not (tmp_path / "x").exists()


def test_imported_and_pulled_runs_say_that_they_have_no_calls(run, tmp_path):
    delphi_folder(tmp_path / "d")
    import_run(tmp_path / "d", "delphi", tmp_path / "im")
    push(run, str(tmp_path / "sent"))
    pull(str(tmp_path / "sent"), tmp_path / "got")
    for place in ("im", "got"):
        for arguments in (["cache", "list", "--run"], ["plan", "--task", "quickstart", "--like"]):
            done = CliRunner().invoke(main, [*arguments, str(tmp_path / place)])
            assert done.exit_code == 2 and "give the directory where the run was made" in done.stderr, done.output


def test_importing_the_exchange_loads_nothing_heavy():
    program = (
        "import importlib, pkgutil, sys, saeval.exchange\n"
        "for m in pkgutil.iter_modules(saeval.exchange.__path__): importlib.import_module('saeval.exchange.' + m.name)\n"
        "print([m for m in ('numpy', 'pyarrow', 'torch', 'datasets', 'huggingface_hub', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the page ---

PAGE = (ROOT / "docs" / "importing.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_commands_and_code_of_the_page_run(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAEVAL_CACHE", str(run.parent / "cache"))  # holds the answers
    shutil.copytree(run, "my-run")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert {line.split()[1] for line in lines} == {"export", "import", "report", "push", "pull", "cache", "run"}
    for line in lines:
        done = CliRunner().invoke(main, line.split()[1:])
        unanswered = "max_unanswered" in done.output  # by the run's judge, and again when it is replayed
        assert done.exit_code == (1 if line.startswith("saeval run") and unanswered else 0), line + done.output
    for ours, theirs in zip(*(saeval.read_result(name).cells for name in ("my-run", "replayed")), strict=True):
        assert [(row.value, row.n, row.unparsed) for row in ours.scores] == [
            (row.value, row.n, row.unparsed) for row in theirs.scores
        ]
        assert sum(row.unparsed for row in ours.scores) > 0
    (code,) = blocks("python")
    exec(code, {})
    assert "cannot be reproduced from this directory" in capsys.readouterr().out


def test_specs_of_the_page_name_options_that_there_are():
    for text in blocks("yaml"):
        ((kind, part),) = yaml.safe_load(text).items()
        Registry().get(kind, part["use"]).cls(**part["with"])


def test_page_names_every_format_and_source():
    for name in (*EXPORTS, "recorded", "delphi", "neuronpedia"):
        assert f"`{name}`" in PAGE
