"""Exports follow what other projects publish of their formats, and keep the numbers."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from cell_files import write_examples
from click.testing import CliRunner
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_cells import cell_of, explained, judged, write_run

import saeval
from saeval import InputError
from saeval.cli.group import main
from saeval.exchange import export_run

SCHEMAS = Path(__file__).parent / "schemas"
LATENTS = range(4)
SCORES = {
    f"{scorer}.{metric}": {i: (0.6 if metric == "accuracy" else 0.5) + 0.1 * i for i in LATENTS}
    for scorer in ("detection", "fuzzing")
    for metric in ("balanced_accuracy", "accuracy")
}


def valid(name: str, document: object) -> None:
    jsonschema.validate(document, json.loads((SCHEMAS / f"{name}.json").read_text()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A contestant with windows, and a baseline."""
    place = tmp_path_factory.mktemp("made") / "run"
    answers = [row for i in (0, 1) for row in judged("detection", i, [True, True, None])]
    tables = {"explanations": explained({i: f"word {i}" for i in LATENTS}), "judgements": answers}
    own = cell_of("topk", SCORES)
    own.scores[0] = own.scores[0].model_copy(update={"lift": 0.2, "lift_ci95": (0.1, 0.3), "verdict": "weak"})
    own.scores[1] = own.scores[1].model_copy(update={"range": (0.0, None)})
    write_run(place, (own, SCORES, tables), (cell_of("neurons", SCORES, baseline="neurons"), SCORES, tables))
    windows = [
        {"latent": i, "role": "score", "active": True, "context": 0, "start": 0, "tokens": ["a", "b"],
         "activations": [0.0, 1.0]}
        for i in LATENTS
    ]  # fmt: skip
    for cell in ("topk", "neurons"):
        write_examples(place / "cells" / cell / "examples.parquet", windows)
    return place


def test_every_eval_ever_record_follows_the_schema_and_keeps_interval_floor_and_judge(run, tmp_path):
    lost = export_run(run, "every-eval-ever", tmp_path / "out", cell="topk")
    assert any("Floors" in sentence for sentence in lost)
    (file,) = (tmp_path / "out").rglob("*.json")
    assert file.relative_to(tmp_path / "out").parts[:4] == ("data", "saeval-face-off", "some", "model-1b")
    record = json.loads(file.read_text())
    valid("every_eval_ever", record)
    rows = saeval.read(run).cells[0].scores
    assert [r["score_details"]["score"] for r in record["evaluation_results"]] == [row.value for row in rows]
    first = record["evaluation_results"][0]
    interval = first["score_details"]["uncertainty"]["confidence_interval"]
    assert (interval["lower"], interval["upper"]) == rows[0].ci95
    assert first["score_details"]["details"]["lift_ci95"] == "0.1 to 0.3"
    assert first["metric_config"]["llm_scoring"]["additional_details"] == {"judge_check": "weak"}
    assert record["evaluation_results"][1]["metric_config"]["max_score"] == "Infinity"
    export_run(run, "every-eval-ever", tmp_path / "again", cell="topk")
    assert [p.name for p in (tmp_path / "again").rglob("*.json")] == [file.name]


def test_every_eval_ever_omits_metrics_of_which_neither_high_nor_low_values_are_better(run, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    result = json.loads((place / "results.json").read_text())
    result["cells"][0]["scores"][1]["higher_is_better"] = None
    (place / "results.json").write_text(json.dumps(result))
    lost = export_run(place, "every-eval-ever", tmp_path / "out", cell="topk")
    assert "topk: detection.accuracy is omitted: neither high nor low values are better." in lost
    record = json.loads(next((tmp_path / "out").rglob("*.json")).read_text())
    assert "detection.accuracy" not in str([r["evaluation_result_id"] for r in record["evaluation_results"]])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"higher_is_better": None}, "only scores of which neither high nor low"),
        ({"value": None}, "no score to export"),
    ],
)
def test_every_eval_ever_says_why_a_cell_has_nothing_to_export(run, tmp_path, change, cause):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    result = json.loads((place / "results.json").read_text())
    for row in result["cells"][0]["scores"]:
        row.update(change)
    (place / "results.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=f"topk: has {cause}"):
        export_run(place, "every-eval-ever", tmp_path / "out", cell="topk")


def test_every_eval_ever_has_a_line_per_judged_window_that_leads_to_its_result(run, tmp_path):
    export_run(run, "every-eval-ever", tmp_path / "out", cell="topk")
    (file,) = (tmp_path / "out").rglob("*.json")
    record = json.loads(file.read_text())
    valid("every_eval_ever", record)
    about = record["detailed_evaluation_results"]
    samples = file.parent / about["file_path"]
    assert about["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == about["total_rows"] == 2 * 3
    for line in lines:
        valid("every_eval_ever_instance", line)
        assert line["evaluation_id"] == record["evaluation_id"]
    assert {line["evaluation_result_id"] for line in lines} == {record["evaluation_results"][0]["evaluation_result_id"]}
    right, wrong, unread = lines[:3]
    assert right["input"] == {"raw": "Explanation: word 0\nWindow: ab", "reference": ["1"], "choices": ["0", "1"]}
    assert (right["output"]["raw"], right["evaluation"]) == (["1"], {"score": 1.0, "is_correct": True})
    assert (wrong["output"]["raw"], wrong["evaluation"]["is_correct"], wrong["error"]) == (["1"], False, None)
    assert (unread["output"]["raw"], unread["answer_attribution"], unread["error"]) == ([], [], "unparsed")


def test_hugging_face_reads_the_results_of_contestants(run, tmp_path):
    with pytest.raises(InputError, match="--dataset OWNER/NAME"):
        export_run(run, "hf-eval-results", tmp_path / "out")
    lost = export_run(run, "hf-eval-results", tmp_path / "out", dataset="me/board")
    assert any(sentence.startswith("neurons: is a baseline") for sentence in lost)
    (file,) = (tmp_path / "out").rglob(".eval_results/*.yaml")
    entries = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    rows = saeval.read(run).cells[0].scores
    found = {entry.task_id: entry.value for entry in entries}
    name = "face-off/{}.balanced_accuracy"
    assert found == {name.format("detection"): rows[0].value, name.format("fuzzing"): rows[2].value}
    assert "95 % CI" in entries[0].notes and "judge_check weak" in entries[0].notes
    card = yaml.safe_load((file.parent.parent / "model-index.yaml").read_text())
    model, results = model_index_to_eval_results(card["model-index"])
    assert model == "some/model-1b layers.1"
    assert [result.metric_value for result in results] == [row.value for row in rows]


def test_neuronpedia_upload_is_within_its_limits_and_scores_lie_beside_it(run, tmp_path):
    export_run(run, "neuronpedia", tmp_path / "out", cell="topk", model="m", source="1-res")
    for line in (tmp_path / "out" / "topk.jsonl").read_text().splitlines():
        valid("neuronpedia_upload_batch", json.loads(line))
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores" / "topk.jsonl").read_text().splitlines()]
    for score in scores:
        valid("neuronpedia_score", score)
    recall = {s["index"]: s["value"] for s in scores if s["explanationScoreTypeName"] == "eleuther_recall"}
    assert recall == {str(i): SCORES["detection.accuracy"][i] for i in LATENTS}
    details = json.loads(scores[0]["jsonDetails"])
    assert details["metric"] == "accuracy" and details["balanced_accuracy"] == SCORES["detection.balanced_accuracy"][0]


def test_formats_that_are_only_written_are_not_offered_for_import(run, tmp_path):
    done = CliRunner().invoke(main, ["import", str(run), "-f", "every-eval-ever", "--out", str(tmp_path / "x")])
    assert done.exit_code == 2 and not (tmp_path / "x").exists()
    arguments = ["export", str(run), "-f", "hf-eval-results", "--dataset", "me/board", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0 and any(".eval_results" in name for name in json.loads(done.stdout)["files"])
