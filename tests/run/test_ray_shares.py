"""Ray workers follow GPUs where they load models, and CPUs elsewhere."""

from __future__ import annotations

import pytest
from tiny import tiny_corpus, tiny_model

from saeval import InputError, SpecError
from saeval._run.executors.ray_shares import divide
from saeval._run.local_models import asks_model_in_process, collects_with_model
from saeval.plugin.registry import Registry
from saeval.task import load_task

ONE_GPU = {"CPU": 16.0, "GPU": 1.0}
EIGHT = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "each", "expected"),
    [
        ([ONE_GPU], None, None, (1, 16, 1)),
        ([EIGHT], None, None, (8, 8, 1)),
        ([EIGHT], None, 2, (4, 16, 2)),
        ([EIGHT], 3, None, (3, 21, 2)),  # no GPU idle that three can share evenly
        ([EIGHT], 12, None, (12, 5, 0.5)),  # at two thirds, four of them would find no room
        ([ONE_GPU], None, 0.25, (4, 4, 0.25)),
        ([EIGHT, EIGHT], None, 8, (2, 64, 8)),
        ([EIGHT, {"CPU": 32.0}], None, None, (8, 8, 1)),
        ([{"CPU": 16.0}], None, None, (16, 1, 0)),
    ],
)
def test_workers_that_load_models_follow_gpus(nodes, workers, each, expected):
    assert divide(nodes, workers, each, models=True) == expected


def test_workers_without_models_follow_cpus():
    assert divide([ONE_GPU], None, None, models=False) == (16, 1, 1 / 16)
    assert divide([{"CPU": 4.0}, {"CPU": 4.0}], 2, None, models=False) == (2, 4, 0)


def test_workers_that_find_no_room_are_refused():
    for nodes, workers, each in (([EIGHT], 5, 2), ([ONE_GPU], None, 2), ([{"CPU": 4.0}], None, 1)):
        with pytest.raises(InputError, match=r"run\.gpus_per_worker: \d+ workers with . GPUs each do not fit"):
            divide(nodes, workers, each, models=True)


def test_it_is_the_task_that_tells_whether_workers_load_models(tmp_path):
    model, corpus = tiny_model(tmp_path / "model"), tiny_corpus(tmp_path / "corpus.jsonl")
    source = {"model": str(model), "hookpoint": "layers.1", "corpus": {"path": str(corpus)}}
    task = {
        "saeval": 1, "task": "t", "version": "1",
        "source": {"use": "transformers", "with": {**source, "coder": {"use": "neurons"}}},
        "llms": {"explainer": {"model": "scripted/e"}, "judge": {"model": "scripted/j"}},
        "explainer": {"use": "default"}, "scorers": {"detection": {}},
    }  # fmt: skip
    registry = Registry()
    assert collects_with_model(built := load_task(task, registry=registry)) and not asks_model_in_process(built)
    task["source"] = {"use": "synthetic"}
    assert not collects_with_model(built := load_task(task, registry=registry)) and not asks_model_in_process(built)
    task["llms"]["judge"] = {"model": f"hf/{model}"}
    assert asks_model_in_process(load_task(task, registry=registry))
    with pytest.raises(SpecError, match="neither a whole number of GPUs"):
        load_task({**task, "run": {"gpus_per_worker": 1.5}}, registry=registry)
