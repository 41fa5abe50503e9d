"""All ways of explaining and scoring fit together: refused up front where they cannot, the same in any order, and run for real."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest
from fake_server import fake_server
from planted_run import spec, truthful
from saeval_plugins.explainers import saeval_explainers
from saeval_plugins.explainers.known import KNOWN_MEANINGS
from saeval_plugins.scorers import saeval_scorers
from saeval_plugins.scorers.human import Human

import saeval
from saeval import SpecError
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def planted(**changes):
    return {
        "saeval": 1, "task": "planted", "version": "1",
        "llms": {
            "judge": {"model": "openai/x"}, "base": {"model": "openai/x"}, "explainer": {"model": "openai/x"},
        },
        "source": {"use": "synthetic", "with": {"n_latents": 8, "documents": 60}},
        "explainer": "top_tokens",
        "scorers": {"detection": {}},
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scorers": {"intervention": {}}}, "scorers.intervention: saeval/intervention needs the live model, which the source saeval/synthetic does not provide"),
        ({"scorers": {"generation": {"llm": "judge"}}}, "scorers.generation: saeval/generation needs a model that reads any text, which the source saeval/synthetic does not provide; use the source transformers, or drop this part"),
        ({"scorers": {"surprisal": {}}}, "saeval/surprisal needs a model that scores continuations, but openai/x cannot"),
        ({"scorers": {"simulation": {"with": {"mode": "all_at_once"}}}}, "saeval/simulation needs a model that scores continuations"),
        ({"explainer": "lens"}, "explainer: saeval/lens needs the coder's weights"),
        ({"explainer": "intervention"}, "explainer: saeval/intervention needs the live model"),
        ({"sampler": {"use": "random", "with": {"non_activating": {"use": "neighbours", "by": "decoder"}}}}, "sampler: saeval/random needs the coder's weights"),
        ({"baselines": ["lens"]}, "baselines.0: saeval/lens needs the live model"),
        ({"scorers": {"embedding": {"with": {"model": "/no/such/model"}}}}, "no such folder"),
        ({"scorers": {"human": {"with": {"path": "/no/ratings.csv"}}}}, "/no/ratings.csv"),
        ({"explainer": {"use": "precomputed", "with": {"path": "/no/texts.jsonl"}}}, "/no/texts.jsonl"),
        ({"scorers": {"detection": {"llm": "jury"}}}, "uses the role 'jury', which is not under llms"),
    ],
)  # fmt: skip
def test_what_a_step_needs_and_cannot_get_is_refused_before_anything_runs(changes, said):
    with pytest.raises(SpecError) as refused:
        load_task(planted(**changes), registry=Registry())
    assert said in str(refused.value)


def test_every_built_in_names_where_it_comes_from():
    for cls in (*saeval_scorers(), *saeval_explainers()):
        if cls.name not in (
            "again",
            "half",
            "consistency",
            "evaluate",
            "injection",
            "precomputed",
            "top_tokens",
            "refine",
            *(known.name for known in KNOWN_MEANINGS),
        ):  # of no paper
            text = f"{sys.modules[cls.__module__].__doc__}{cls.__doc__}"
            assert "paper" in text or "arXiv" in text, cls.name


def test_scores_do_not_depend_on_concurrency_or_order_of_arrival(tmp_path, monkeypatch):
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("latent,rating\n" + "".join(f"{i},{1 + i % 4}\n" for i in range(8)))
    scorers = {
        "detection": {}, "fuzzing": {}, "active": {"use": "fuzzing", "with": {"negatives": "active"}},
        "order": {"use": "consistency"}, "human": {"with": {"path": str(ratings)}},
    }  # fmt: skip
    found = []
    for concurrency, seed in ((1, 0), (16, 1), (16, 2)):
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / f"cache{seed}"))
        waits = random.Random(seed)

        async def late(messages, waits=waits):
            await asyncio.sleep(waits.uniform(0, 0.01))
            return truthful(messages)

        with fake_server(late) as server:
            task = spec(server, scorers=scorers, run={"concurrency": concurrency})
            for role in task["llms"].values():
                role["concurrency"] = concurrency
            result = saeval.run(task, out=tmp_path / f"run{seed}")
        found.append([cell.model_dump() for cell in result.cells])
    assert found[0] == found[1] == found[2]
    rows = {(r["scorer"], r["variant"]): r for r in reversed(found[0][0]["scores"])}
    assert rows["human", "explanation"]["n"] == 6 and rows["human", "explanation"]["value"] is not None
    assert Human.name in {label for c in found[0][0]["correlations"] for label in c["scorers"]}
