"""A whole run gives the right scores, writes everything down, resumes, and isolates what breaks."""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import re
import time

import pytest
from click.testing import CliRunner
from fake_server import content, error
from planted_run import finished, spec, truthful, truthful_server
from tiny import random_task

import saeval
from saeval import InputError, SpecError
from saeval._run.failures import GaveUp
from saeval._run.pipeline import Pipeline
from saeval._util.progress import Plain
from saeval.cli.group import main
from saeval.plugin import LatentRecord, Outcome
from saeval.records import MAIN
from saeval.results import list_runs


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)


def rows(result, variant="explanation"):
    """Headline row of each scorer."""
    found = {}
    for row in result.cells[0].scores:
        if row.variant == variant:
            found.setdefault(row.scorer, row)
    return found


def test_true_explanations_score_one_and_shuffled_ones_at_the_floor(tmp_path):
    with truthful_server() as server:
        result = saeval.run(spec(server), out=tmp_path / "run")
    true, shuffled, random = rows(result), rows(result, "shuffled_explanation"), rows(result, "random_explanation")
    for scorer in ("detection", "fuzzing"):
        assert true[scorer].value >= 0.95
        assert random[scorer].value == pytest.approx(0.5, abs=0.1)
        assert true[scorer].against.variant == "shuffled_explanation"
        assert true[scorer].lift == pytest.approx(true[scorer].value - shuffled[scorer].value, abs=0.05)
        low, high = true[scorer].ci95
        assert 0 <= low < true[scorer].value <= high <= 1
    assert shuffled["detection"].value == pytest.approx(0.5, abs=0.1)
    # Among eight latents, the explanation of another one may well be true of the decoy, and so be worse than chance.
    assert shuffled["fuzzing"].value < 0.6
    assert (true["detection"].n, true["fuzzing"].n) == (6, 3)
    assert true["detection"].coverage == 1.0
    assert set(true["detection"].floor) == {"shuffled_explanation", "random_explanation", "top_tokens", "chance"}
    assert result.synthetic
    assert rows(result, "top_tokens")["detection"].value >= 0.95


def test_everything_is_written_down_and_read_back(tmp_path):
    import pyarrow.parquet as pq

    with truthful_server() as server:
        result = saeval.run(spec(server), out=tmp_path / "run")
    assert saeval.read(tmp_path / "run") == result
    cell = tmp_path / "run" / "cells" / result.cells[0].cell
    latents = pq.read_table(cell / "latents.parquet").to_pylist()
    assert len(latents) == 6
    assert all(row["score.detection.balanced_accuracy"] >= 0.9 for row in latents)
    judged = pq.read_table(cell / "judgements.parquet").to_pylist()
    assert {j["variant"] for j in judged} == {"explanation", "shuffled_explanation", "random_explanation", "top_tokens"}
    examples = pq.read_table(cell / "examples.parquet").to_pylist()
    explained = {(e["latent"], e["document"]) for e in examples if e["role"] == "explain"}
    scored = {(e["latent"], e["document"]) for e in examples if e["role"] == "score"}
    assert explained and scored and not explained & scored
    texts = [json.loads(line) for line in (cell / "explanations.jsonl").read_text().splitlines()]
    assert all("the word '" in t["text"] for t in texts if t["variant"] == "explanation")
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "detection" in report and "planted" in report
    assert (tmp_path / "run" / "report" / "leaderboard.csv").exists()


def test_second_run_does_nothing_and_a_wider_one_only_what_is_new(tmp_path):
    with truthful_server() as server:
        first = saeval.run(spec(server), out=tmp_path / "run")
        asked = len(server.calls)
        second = saeval.run(spec(server), out=tmp_path / "run")
        assert len(server.calls) == asked
        assert second.cells == first.cells
        saeval.run(spec(server, latents={"n": 7, "min_windows": 20}), out=tmp_path / "run")
        # One more latent: an explanation, and 8 batches of detection for it, and for each of three baselines. The
        # shuffle has changed, so those latents whose stand-in changed are asked again too.
        assert asked < len(server.calls) <= asked + 1 + 4 * 8 + 6 * 8


def test_changed_option_redoes_what_hangs_on_it_and_nothing_else(tmp_path):
    with truthful_server() as server:
        saeval.run(spec(server, baselines=[]), out=tmp_path / "run")
        asked = len(server.calls)
        changed = spec(
            server, baselines=[], scorers={"detection": {"with": {"batch": 10}}, "fuzzing": {"when": {"latents": 3}}}
        )
        saeval.run(changed, out=tmp_path / "run")
        assert len(server.calls) == asked + 6 * 4  # 6 latents, 40 windows in batches of 10


def test_results_do_not_depend_on_concurrency_or_on_where_a_run_was_cut(tmp_path, monkeypatch):
    with truthful_server() as server:
        whole = saeval.run(spec(server, run={"concurrency": 1}), out=tmp_path / "a")
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "other"))
        saeval.run(spec(server, run={"concurrency": 16}), out=tmp_path / "b", limit=2)
        resumed = saeval.run(spec(server, run={"concurrency": 16}), out=tmp_path / "b")
    assert [c.scores for c in resumed.cells] == [c.scores for c in whole.cells]


def test_limit_marks_the_result_partial(tmp_path):
    with truthful_server() as server:
        result = saeval.run(spec(server), out=tmp_path / "run", limit=2)
    assert result.partial
    assert rows(result)["detection"].n == 2


def test_judge_that_answers_garbage_gives_statuses_not_scores(tmp_path):
    with truthful_server() as server:
        server.reply = lambda m: "I am a teapot" if m[-1]["content"].startswith("Explanation:") else truthful(m)
        with pytest.raises(GaveUp, match=r"first 3 latents all failed for one reason.*no list"):
            saeval.run(spec(server, run={"give_up_after": 3}, baselines=[]), out=tmp_path / "run")
        server.reply = truthful
        mended = saeval.run(
            spec(
                server,
                run={"give_up_after": 3},
                baselines=[],
                llms=spec(server)["llms"] | {"judge": {"model": "openai_compatible/better", "api_base": server.url}},
            ),
            out=tmp_path / "run",
        )
        assert rows(mended)["detection"].value >= 0.95


def test_failures_of_some_calls_are_counted_and_leave_the_other_scores_alone(tmp_path):
    with truthful_server() as server:
        listed = {"select": "list", "indices": [0, 1, 2, 3, 4, 5]}
        whole = saeval.run(spec(server, baselines=[], latents=listed), out=tmp_path / "whole")

        def flaky(messages):
            text = messages[-1]["content"]
            return "?" if text.startswith("Explanation: the word 'harbor'") else truthful(messages)

        server.reply = flaky
        llms = {role: {"model": "openai_compatible/flaky", "api_base": server.url} for role in ("explainer", "judge")}
        result = saeval.run(spec(server, baselines=[], latents=listed, llms=llms), out=tmp_path / "flaky")
    row = rows(result)["detection"]
    assert (row.tried, row.n, row.failed, row.coverage) == (6, 5, 1, pytest.approx(5 / 6))
    assert row.unparsed == 40
    assert row.value == pytest.approx(rows(whole)["detection"].value, abs=0.05)
    (warning,) = [w for w in result.warnings if "failed on 1 of 6" in w]
    said = f"The score {row.value:.3f} and its interval describe only latents that did not fail"
    assert said in warning and f"{(5 * row.value + 0.5) / 6:.3f} with failures counted as chance" in warning


def test_server_that_is_down_stops_the_run_with_its_reason_and_a_fixed_one_resumes(tmp_path):
    with truthful_server() as server:
        server.always = error(500, "out of memory")
        with pytest.raises(GaveUp, match="status 500: out of memory"):
            saeval.run(spec(server, run={"give_up_after": 3}), out=tmp_path / "run")
        server.always = None
        assert rows(saeval.run(spec(server), out=tmp_path / "run"))["detection"].n == 6


def priced(server):
    """Return a spec whose models cost ten dollars a million tokens, and are asked one thing at a time."""
    price = {"usd_per_million_input": 10.0, "usd_per_million_output": 10.0}
    model = {"model": "openai_compatible/rules", "api_base": server.url, **price}
    return spec(server, llms={"explainer": model, "judge": model}, baselines=[], run={"concurrency": 1})


def test_spending_limit_stops_cleanly_and_a_higher_one_resumes(tmp_path):
    with truthful_server() as server:
        paid = priced(server)
        with pytest.raises(saeval.BudgetExceeded, match="higher --max-cost"):
            saeval.run(paid, out=tmp_path / "run", max_cost=0.02)
        spent = len(server.calls)
        assert saeval.read(tmp_path / "run").partial
        result = saeval.run(paid, out=tmp_path / "run", max_cost=10)
        assert len(server.calls) == len({json.dumps(c, sort_keys=True) for c in server.calls})
        assert spent < len(server.calls)
        assert sum(ledger.usd for ledger in result.ledger) == pytest.approx(len(server.calls) * 110 * 10 / 1e6)


def test_damaged_ledger_lines_are_reported_because_they_may_have_cost_something(tmp_path, caplog):
    ledger = tmp_path / "run" / "calls.jsonl"
    with truthful_server() as server:
        paid = priced(server)
        with pytest.raises(saeval.BudgetExceeded):
            saeval.run(paid, out=tmp_path / "run", max_cost=0.02)
        first, second, third, *others = ledger.read_bytes().splitlines(keepends=True)  # the first two tried the models
        ledger.write_bytes(b"".join([first, second, third[:40], b"\n", *others]))
        with caplog.at_level("WARNING", "saeval"):
            result = saeval.run(paid, out=tmp_path / "run", max_cost=1000)
    log = caplog.text + (tmp_path / "run" / "logs" / "run.log").read_text()
    assert "the spending limit uses the totals in later lines" in log
    assert "calls.jsonl: 1 line is damaged, so the cost of those calls is not counted." in result.warnings
    assert sum(ledger.calls for ledger in result.ledger) == len(server.calls) - 1


BAD_SCORER = """
import asyncio, sys, time
from saeval.plugin import Score, Scorer, AUROC
def broken(): return 1 / 0
class Bad(Scorer):
    name = "bad"
    metrics = (AUROC,)
    how: str = "raise"
    async def score(self, explanation, examples, context):
        if examples.latent.index % 2:
            return Score(values={"auroc": 0.7})
        if self.how == "hang":
            await asyncio.Event().wait()
        if self.how == "cancel":
            helper = asyncio.ensure_future(asyncio.sleep(60))
            helper.cancel()
            await helper
        return {"block": lambda: time.sleep(60), "exit": lambda: sys.exit(0), "memory": lambda: bytearray(1 << 60), "raise": broken, "nan": lambda: Score(values={"auroc": float("nan")}), "range": lambda: Score(values={"auroc": 7.0}),
                "type": lambda: "good", "metric": lambda: Score(values={"other": 1.0})}[self.how]()
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ZeroDivisionError: division by zero (bad.py:4; logs/run.log has more)"),
        ("nan", "nan"),
        ("range", "7.0, outside"),
        ("type", "returned str"),
        ("metric", "gave no auroc"),
        ("exit", "the plugin raised SystemExit"),
        ("memory", "MemoryError"),
        ("hang", "neither finished nor asked a model for 0.5 s"),
        ("block", "blocked the whole run"),
        ("cancel", "the plugin was cancelled by itself"),
    ],
)
def test_plugin_that_breaks_costs_its_latents_only(tmp_path, how, reason):
    (tmp_path / "bad.py").write_text(BAD_SCORER)
    with truthful_server() as server:
        scorers = {"detection": {}, "bad": {"use": f"{tmp_path}/bad.py:Bad", "with": {"how": how}}}
        result = saeval.run(
            spec(server, scorers=scorers, baselines=[], leaderboard={"rank_by": "detection"}, run={"hang_after": 0.5}),
            out=tmp_path / "run",
        )
    found = rows(result)
    assert found["detection"].n == 6
    assert found["bad"].value == pytest.approx(0.7)
    assert 0 < found["bad"].failed < 6
    assert not result.reproducible
    journal = (tmp_path / "run" / "journal.jsonl").read_text()
    assert reason in journal


OTHER_WINDOWS = """
from saeval.plugin import AUROC, Outcome, Score, Scorer, WrittenText
class Windows(Scorer):
    name = "windows"
    metrics = (AUROC,)
    async def score(self, explanation, examples, context):
        first = examples.activating[0]
        one = Outcome(example=first.id, active=True, predicted=True)
        text = WrittenText(tokens=("a",), activations=(0.0,))
        written = Outcome(example="text 1", active=True, predicted=False, written=text)
        strange = one.model_copy(update={"example": f"{first.id}00"})
        fails = examples.latent.index % 2
        return Score(values={"auroc": 0.6}, outcomes=(one, one, strange if fails else written))
"""


def test_outcome_for_a_window_that_the_scorer_did_not_get_fails_its_latent_unlike_repeated_and_written_ones(tmp_path):
    (tmp_path / "other.py").write_text(OTHER_WINDOWS)
    with truthful_server() as server:
        scorers = {"windows": {"use": f"{tmp_path}/other.py:Windows"}}
        changes = {"scorers": scorers, "baselines": [], "leaderboard": {"rank_by": "windows"}, "latents": FIRST}
        result = saeval.run(spec(server, **changes), out=tmp_path / "run")
    found = rows(result)["windows"]
    assert (found.value, found.n, found.failed) == (pytest.approx(0.6), 3, 3)
    journal = (tmp_path / "run" / "journal.jsonl").read_text()
    assert re.search(r"the scorer gave an outcome for '\d+:\d+00', which is none of the windows it got", journal)


UNFIT_PLUGINS = """
import functools
from saeval.plugin import ActivationSource, Explainer, Explanation, Sampler
class Plain(Explainer):
    name = "plain"
    def explain(self, examples, context):
        return Explanation(text="a word")
def plainly(method):
    return functools.wraps(method)(lambda *arguments: Explanation(text="a word"))
class Decorated(Explainer):
    name = "decorated"
    @plainly
    async def explain(self, examples, context): ...
class Listing(Sampler):
    name = "listing"
    def sample(self, store, latent, rng):
        return [latent]
class Idle(ActivationSource):
    name = "idle"
    def collect(self, writer):
        pass
class Broken(ActivationSource):
    name = "broken"
    def collect(self, writer):
        raise KeyError("deep inside")
class Early(ActivationSource):
    name = "early"
    def collect(self, writer):
        writer.add([3], [0], [1.0])
"""


@pytest.mark.parametrize(
    ("part", "name", "said"),
    [
        ("sampler", "Listing", r"the sampler local/listing returned list instead of LatentRecord or None"),
        ("source", "Idle", r"the source local/idle wrote nothing; its `collect` must call `writer\.start`"),
        ("source", "Early", r"the source local/early called `writer\.add` before `writer\.start`; call `start` first"),
        ("source", "Broken", r"the plugin code at unfit\.py:25 raised an error \(KeyError: 'deep inside'\)"),
    ],
)
def test_plugin_that_breaks_the_run_is_named_with_what_to_change(tmp_path, part, name, said):
    (tmp_path / "unfit.py").write_text(UNFIT_PLUGINS)
    with truthful_server() as server, pytest.raises(saeval.SaevalError, match=said):
        saeval.run(spec(server, **{part: f"{tmp_path}/unfit.py:{name}"}), out=tmp_path / "run")


def test_step_that_is_not_async_is_refused_or_fails_with_what_to_write(tmp_path):
    (tmp_path / "unfit.py").write_text(UNFIT_PLUGINS)
    with truthful_server() as server:
        plain, decorated = (
            spec(server, explainer=f"{tmp_path}/unfit.py:{name}", baselines=[]) for name in ("Plain", "Decorated")
        )
        with pytest.raises(SpecError, match="Plain: `explain` is not async, but its result is awaited; write `async"):
            saeval.run(plain, out=tmp_path / "plain")
        result = saeval.run(decorated, out=tmp_path / "run")
    assert any("`explain` is not async; write `async def explain`" in warning for warning in result.warnings)


FIRST = {"select": "list", "indices": [0, 1, 2, 3, 4, 5]}

UNUSUAL_RESULTS = """
import numpy as np
from saeval.plugin import AUROC, Explainer, Explanation, Score, Scorer
class Writer(Explainer):
    name = "writer"
    async def explain(self, examples, context):
        return {
            0: Explanation(text=""), 1: Explanation(text=" \\n"), 2: Explanation(text="", status="failed"),
        }.get(examples.latent.index, Explanation(text="words"))
class Raw(Scorer):
    name = "raw"
    metrics = (AUROC,)
    async def score(self, explanation, examples, context):
        good = Score(values={"auroc": 0.5})
        changes = {
            0: {"values": {"auroc": object()}}, 1: {"notes": {"a": object()}}, 2: {"notes": {"a": 10**5000}},
        }
        return good.model_copy(update=changes.get(examples.latent.index, {"values": {"auroc": np.float64(0.5)}}))
"""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("limit", 0), ("limit", -1), ("limit", "2"), ("limit", 1.5), ("limit", True),
        ("max_cost", -0.5), ("max_cost", float("nan")), ("max_cost", "3"), ("retry", "everything"),
    ],
)  # fmt: skip
def test_option_out_of_range_is_one_clear_sentence(tmp_path, option, value):
    with pytest.raises(InputError, match=f"^{option} is "):
        saeval.run("quickstart", out=tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


def test_model_whose_connections_cannot_be_closed_is_a_warning(tmp_path, monkeypatch):
    async def fail(_):
        raise ConnectionError("already closed")

    monkeypatch.setattr("saeval_plugins.llms.OpenAICompatible.aclose", fail)
    with truthful_server() as server:
        result = saeval.run(spec(server, baselines=[]), out=tmp_path / "run")
    assert rows(result)["detection"].n == 6 and not result.partial
    log = (tmp_path / "run" / "logs" / "run.log").read_text()
    assert "judge: closing openai_compatible/rules failed (ConnectionError: already closed)" in log


NOTED = """
from saeval.plugin import Explainer, Explanation, Measure
class Noted(Explainer):
    name = "noted"
    measures = (Measure(name="surprise", about="Made up.", format=".2f"),)
    async def explain(self, examples, context):
        values = {0: float("nan"), 1: True, 2: "two", 3: float("inf"), 4: 1, 5: 2.0}
        return Explanation(text="words", notes={"surprise": values[examples.latent.index]})
"""


def test_measures_of_explanations_are_means_of_finite_numbers(tmp_path):
    (tmp_path / "noted.py").write_text(NOTED)
    with truthful_server() as server:
        explainer = {"use": f"{tmp_path}/noted.py:Noted"}
        result = saeval.run(spec(server, explainer=explainer, latents=FIRST, baselines=[]), out=tmp_path / "run")
    assert result.cells[0].measures["surprise"] == 1.5
    json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)


MEASURED = """
from typing import ClassVar
from saeval.plugin import Measure
from saeval_plugins.sources import Synthetic
class Measured(Synthetic):
    name = "measured"
    scale: float = 1.0
    measures: ClassVar = tuple(Measure(name=n, about="Made up.") for n in ("fine", "nan", "inf", "text", "missing"))
    def collect(self, writer):
        super().collect(writer)
        writer.note(measures={"fine": 2, "nan": float("nan"), "inf": float("inf"), "text": "many"}, odd=float("inf"))
"""


def test_measures_of_a_source_that_are_no_finite_numbers_are_omitted_with_a_caution(tmp_path):
    (tmp_path / "measured.py").write_text(MEASURED)
    with truthful_server() as server:
        source = {"use": f"{tmp_path}/measured.py:Measured", "with": {"n_latents": 8, "documents": 60}}
        result = saeval.run(spec(server, source=source, latents=FIRST, baselines=[]), out=tmp_path / "run")
    cell = result.cells[0]
    assert cell.measures["fine"] == 2.0 and not {"nan", "inf", "text", "missing"} & cell.measures.keys()
    for name, value in (("nan", "nan"), ("inf", "inf"), ("text", "'many'")):
        assert f"The measure {name} is {value}, not a finite number, so it is omitted." in cell.cautions
    facts = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)
    assert facts["cells"][0]["coder"]["odd"] is None


IN_PLACE = """
from saeval.plugin import AUROC, Score, Scorer
class InPlace(Scorer):
    name = "in_place"
    metrics = (AUROC,)
    async def score(self, explanation, examples, context):
        examples.activating[0].activations[:] = 0
        return Score(values={"auroc": 0.7})
class TokensInPlace(InPlace):
    name = "tokens_in_place"
    async def score(self, explanation, examples, context):
        examples.non_activating[0].token_ids += 1
        return Score(values={"auroc": 0.7})
"""


def test_plugin_that_changes_windows_in_place_fails_and_changes_none(tmp_path):
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    with truthful_server() as server:
        own = {name: {"use": f"{tmp_path}/in_place.py:{name}"} for name in ("InPlace", "TokensInPlace")}
        scorers = {"detection": {}, **own}
        result = saeval.run(spec(server, scorers=scorers, baselines=[]), out=tmp_path / "run")
    found = rows(result)
    assert found["detection"].value == 1.0
    assert found["InPlace"].failed == found["TokensInPlace"].failed == 6
    assert "read-only" in (tmp_path / "run" / "journal.jsonl").read_text()


def test_blank_explanation_is_a_failure_and_nobody_scores_it(tmp_path):
    (tmp_path / "odd.py").write_text(UNUSUAL_RESULTS)
    with truthful_server() as server:
        explainer = {"use": f"{tmp_path}/odd.py:Writer"}
        task = spec(server, explainer=explainer, scorers={"detection": {}}, baselines=[], latents=FIRST)
        result = saeval.run(task, out=tmp_path / "run")
        assert not any("Explanation: \n" in call["messages"][-1]["content"] for call in server.calls)
    row = rows(result)["detection"]
    assert (row.tried, row.n, row.failed) == (6, 3, 3)
    reasons = [value["reason"] for value in finished(tmp_path / "run").values() if "text" in value]
    assert reasons.count("the explainer returned an empty explanation") == 2
    assert reasons.count("the plugin gave no reason") == 1


def test_score_that_cannot_be_saved_costs_its_latent_only(tmp_path):
    (tmp_path / "odd.py").write_text(UNUSUAL_RESULTS)
    with truthful_server() as server:
        task = spec(server, scorers={"raw": {"use": f"{tmp_path}/odd.py:Raw"}}, baselines=[], latents=FIRST)
        result = saeval.run(task, out=tmp_path / "run")
    row = rows(result)["raw"]
    assert (row.tried, row.n, row.failed, row.value) == (6, 3, 3, 0.5)


BROKEN_CAUTIONS = """
from saeval.plugin import AUROC, Score, Scorer
class Cautious(Scorer):
    name = "cautious"
    metrics = (AUROC,)
    how: str = "raise"
    recorded: bool = True
    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 0.7})
    def cautions(self, values, latents):
        return {"raise": lambda: [1 / 0], "text": lambda: "a text", "none": lambda: None}[self.how]()
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [("raise", "raised ZeroDivisionError"), ("text", "returned str"), ("none", "returned NoneType")],
)
def test_cautions_that_break_are_a_warning(tmp_path, how, said):
    (tmp_path / "cautious.py").write_text(BROKEN_CAUTIONS)
    with truthful_server() as server:
        scorers = {"own": {"use": f"{tmp_path}/cautious.py:Cautious", "with": {"how": how}}}
        result = saeval.run(spec(server, scorers=scorers, baselines=[]), out=tmp_path / "run")
    assert rows(result)["own"].n == 6
    assert not result.recorded  # an option may have the name of what only language models declare
    assert any(f"own: its cautions are unknown, because own {said}" in warning for warning in result.warnings)


CANCELS_OTHERS = """
import asyncio
from saeval.plugin import AUROC, Score, Scorer
class Greedy(Scorer):
    name = "greedy"
    metrics = (AUROC,)
    async def score(self, explanation, examples, context):
        if examples.latent.index == 0:
            for task in asyncio.all_tasks():
                if task.get_coro().__name__ == "_do":
                    task.cancel()
        await asyncio.sleep(0.1)
        return Score(values={"auroc": 0.7})
"""


def test_plugin_that_cancels_the_work_of_a_run_stops_it_and_a_fixed_one_resumes(tmp_path):
    (tmp_path / "greedy.py").write_text(CANCELS_OTHERS)
    with truthful_server() as server:
        task = spec(server, scorers={"greedy": {"use": f"{tmp_path}/greedy.py:Greedy"}}, baselines=[], latents=FIRST)
        with pytest.raises(GaveUp, match="the work on a latent was cancelled"):
            saeval.run(task, out=tmp_path / "run")
        (tmp_path / "greedy.py").write_text(CANCELS_OTHERS.replace("== 0", "== -1"))
        result = saeval.run(task, out=tmp_path / "run")
    row = rows(result)["greedy"]
    assert (row.tried, row.n, row.failed) == (6, 6, 0)


def test_run_that_nearly_used_up_memory_stops_and_resumes_where_it_stopped(tmp_path, monkeypatch):
    with truthful_server() as server:
        left = iter([0.5, 0.5, 0.01])
        with monkeypatch.context() as patch:
            patch.setattr("saeval._run.pipeline.memory_left", lambda: next(left))
            patch.setattr("saeval._run.pipeline._MEMORY_EVERY", 0.0)
            with pytest.raises(saeval.SaevalError, match=r"memory is nearly used up \(1.0% left\)"):
                saeval.run(spec(server, baselines=[]), out=tmp_path / "run")
        asked = len(server.calls)
        result = saeval.run(spec(server, baselines=[]), out=tmp_path / "run")
        assert 0 < asked < len(server.calls) == len({json.dumps(c, sort_keys=True) for c in server.calls})
    assert rows(result)["detection"].n == 6


def test_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    with truthful_server() as server:
        steady = saeval.run(spec(server, baselines=[]), out=tmp_path / "steady")
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "another"))
        real, jumps = time.time, iter(range(10**9))
        monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86_400)
        began = time.monotonic()
        jumping = saeval.run(spec(server, baselines=[]), out=tmp_path / "jumping")
    assert time.monotonic() - began < 30
    assert [c.model_dump() for c in jumping.cells] == [c.model_dump() for c in steady.cells]


def test_works_inside_a_running_event_loop(tmp_path):
    async def notebook():
        return saeval.run(spec(server, baselines=[]), out=tmp_path / "run")

    with truthful_server() as server:
        assert rows(asyncio.run(notebook()))["detection"].n == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": {"detection": {"use": "detecton"}}}, r"scorers\.detection\.use: unknown scorer 'detecton', did you mean 'detection'\?"),
        ({"scorers": {"detection": {"with": {"batsh": 5}}}}, r"scorers\.detection\.with\.batsh: no such option, did you mean 'batch'\?"),
        ({"scorers": {"detection": {"llm": "jugde"}}}, "uses the role 'jugde', which is not under llms"),
        ({"scorers": {"detection": {"with": {"mode": "probability"}}}}, "needs a model that scores continuations"),
        ({"scorers": {}}, "give at least one scorer"),
        ({"baselines": ["randm_explanation"]}, "did you mean 'random_explanation'"),
        ({"baselines": ["neurons"]}, "has no coder that a baseline could replace"),
        ({"leaderboard": {"rank_by": "detection.auc"}}, "detection has no metric 'auc'"),
        ({"source": {"use": "synthetic", "with": {"n_latents": "many"}}}, r"source\.with\.n_latents: should be a valid integer.*got 'many'"),
        ({"source": {"use": "nothing/here"}}, "unknown source 'nothing/here'"),
        ({"explainer": "detection"}, r"unknown explainer 'detection'; it is a scorer"),
        ({"scorers": {"own": "detection"}}, r"scorers\.own: should be a mapping, such as {use: detection} \(got 'detection'\)"),
        ({"scorers": {"detection": {"batch": 3}}}, "no such key; .*; options of the plugin go under `with`"),
        ({"source": {"use": "transformers", "with": {"model": "m", "hookpoint": "h", "coder": "neurons", "corpus": "a.txt"}}},
            r"source\.with\.corpus: should be a mapping, such as {path: a\.txt}"),
        ({"latents": 5}, r"latents: should be a mapping, such as {n: 5} \(got 5\)"),
        ({"latents": "random"}, r"latents: should be a mapping, such as {select: random} \(got 'random'\)"),
        ({"latents": None}, r"latents: should be a mapping, such as {select: …} \(got None\)"),
        ({"scorers": {"detection": {"when": 5}}}, r"detection\.when: should be a mapping, such as {latents: 5}"),
        ({"scorers": ["detection", "fuzzing"]}, r"scorers: should be a mapping, such as {detection: …}"),
        ({"sampler": {"use": "random", "with": {"non_activating": 5}}}, r"non_activating: should be a mapping, such as {n: 5}"),
        ({"baselines": "random_explanation"}, r"baselines: should be a list, such as \[random_explanation\]"),
        ({"leaderboard": "detection.auroc"}, r"leaderboard: should be a mapping, such as {rank_by: detection\.auroc}"),
    ],
)  # fmt: skip
def test_spec_that_names_what_is_not_there_is_refused_before_anything_runs(tmp_path, changes, message):
    with truthful_server() as server:
        with pytest.raises(SpecError, match=message):
            saeval.run(spec(server, **changes), out=tmp_path / "run")
        assert not server.calls
    assert not (tmp_path / "run").exists()


def test_latents_that_cannot_be_sampled_are_one_clear_sentence(tmp_path):
    with (
        truthful_server() as server,
        pytest.raises(InputError, match=r"no latent has 5000 activating windows.*latents.min_windows"),
    ):
        saeval.run(spec(server, latents={"min_windows": 5000}), out=tmp_path / "run")


def test_sampler_of_a_package_that_finds_no_windows_is_named(tmp_path):
    (tmp_path / "empty.py").write_text(
        "from saeval.plugin import Sampler\n\nclass Empty(Sampler):\n    name = 'empty'\n\n"
        "    def sample(self, store, latent, rng):\n        return None\n"
    )
    with (
        truthful_server() as server,
        pytest.raises(InputError, match=r"the sampler local/empty .* returned None for all of \d+ latents"),
    ):
        saeval.run(spec(server, sampler=f"{tmp_path}/empty.py:Empty"), out=tmp_path / "run")


def test_message_about_a_baseline_coder_that_cannot_be_sampled_names_it(tmp_path):
    task = random_task(tmp_path, n_latents=256, window=14, score=5, baselines=[{"use": "neurons", "with": {"k": 24}}])
    with pytest.raises(InputError, match="cell coder=neurons: .*; or remove neurons from `baselines`"):
        saeval.run(task, out=tmp_path / "run")  # each neuron fires on half of the tokens


WATCHING_SCORER = """
import collections, gc, pathlib
from saeval.plugin import AUROC, Outcome, Score, Scorer, LatentRecord
class Watching(Scorer):
    name = "watching"
    metrics = (AUROC,)
    notes: str
    async def score(self, explanation, examples, context):
        if context.rng.random() < 0.15:  # it takes long to look at all there is
            alive = collections.Counter(map(type, gc.get_objects()))
            with pathlib.Path(self.notes).open("a") as file:
                print(alive[LatentRecord], alive[Outcome], file=file)
        return Score(values={"auroc": 0.5}, outcomes=[
            Outcome(example=w.id, active=w.active, probability=0.5) for w in examples.activating])
"""


def test_memory_does_not_grow_with_the_latents_and_nothing_is_lost_by_it(tmp_path, monkeypatch):
    (tmp_path / "watching.py").write_text(WATCHING_SCORER)

    def made(out, notes):
        watching = {"use": f"{tmp_path}/watching.py:Watching", "with": {"notes": str(tmp_path / notes)}}
        changes = {"scorers": {"detection": {}, "watching": watching}, "leaderboard": {"rank_by": "detection"}}
        source = {"use": "synthetic", "with": {"n_latents": 30, "documents": 60}}
        sampler = {"use": "random", "with": {"explain": 5, "score": 10, "non_activating": {"n": 10}}}
        with truthful_server() as server:
            given = spec(server, source=source, sampler=sampler, run={"concurrency": 1}, **changes)
            result = saeval.run({**given, "latents": {"n": 30, "min_windows": 10}}, out=tmp_path / out)
        fields = result.model_dump(exclude={"run_id", "spec_sha", "ledger", "seconds", "components", "judges"})
        for cell in fields["cells"]:
            del cell["settings"]["scorers.watching"]  # whose option names the file of notes
        return fields, tmp_path / out

    kept, folder = made("kept", "all.txt")
    monkeypatch.setattr("saeval._run.sampling.Records.KEPT", 3)
    gc.collect()
    before = [sum(issubclass(type(x), kind) for x in gc.get_objects()) for kind in (LatentRecord, Outcome)]
    few, again = made("few", "few.txt")
    assert few == kept and len(few["cells"][0]["scores"]) > 8
    for table in ("latents", "examples", "judgements", "latent_scores", "calls"):
        a, b = (getattr(saeval.read(place), table).to_pylist() for place in (folder, again))
        assert a == b and len({row["latent"] for row in a}) == 30, table
    records, outcomes = zip(
        *(map(int, line.split()) for line in (tmp_path / "few.txt").read_text().splitlines()), strict=True
    )
    assert len(records) > 8 and max(records) - before[0] <= 3 + 2
    assert max(outcomes) - before[1] <= 4 * 20  # of a few latents, whatever was scored before


SLOW_SOURCE = """
import time
from saeval_plugins.sources.synthetic import Synthetic
class Slow(Synthetic):
    name = "slow"
    def collect(self, writer):
        time.sleep(1.5)
        super().collect(writer)
"""


def test_collecting_that_stalls_is_reported_and_may_resume(tmp_path, capsys):
    (tmp_path / "slow.py").write_text(SLOW_SOURCE)
    with truthful_server() as server:
        given = spec(server, source=f"{tmp_path}/slow.py:Slow", baselines=[], run={"hang_after": 0.5})
        assert not saeval.run(given, out=tmp_path / "run", display=Plain()).partial
    assert "collect activations: no progress for 1 s; if it hangs, stop it with Ctrl-C" in capsys.readouterr().err


FICKLE_SAMPLER = """
from saeval.plugin import Sampler
class Fickle(Sampler):
    name = "fickle"
    def sample(self, store, latent, rng):
        from saeval_plugins.samplers.windows import RandomSampler
        seen = store.__dict__.setdefault("seen", set())
        if latent in seen:
            return None
        seen.add(latent)
        return RandomSampler(window=self.window, explain=5, score=10).sample(store, latent, rng)
"""


def test_sampler_whose_windows_come_and_go_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("saeval._run.sampling.Records.KEPT", 1)
    (tmp_path / "fickle.py").write_text(FICKLE_SAMPLER)
    with truthful_server() as server, pytest.raises(InputError, match="returned windows once and none the next time"):
        saeval.run(spec(server, sampler=f"{tmp_path}/fickle.py:Fickle"), out=tmp_path / "run")


def test_scores_that_a_stopped_run_did_not_reach_stand_on_the_board_as_not_tried(tmp_path, monkeypatch):
    do, judged = Pipeline._do, []

    async def stopping(pipeline, item):
        if item.variant == MAIN:
            while len(judged) < 3:
                await asyncio.sleep(0.01)
            raise GaveUp("stopped here")
        await do(pipeline, item)
        judged.extend([item] * (item.step == "detection"))

    monkeypatch.setattr(Pipeline, "_do", stopping)
    small = {"latents": {"n": 3, "min_windows": 20}, "scorers": {"detection": {}}, "baselines": ["random_explanation"]}
    with truthful_server() as server, pytest.raises(GaveUp, match="stopped here"):
        saeval.run(spec(server, **small, run={"concurrency": 16}), out=tmp_path / "run")
    result = saeval.read(tmp_path / "run")
    own, floor = result.cells[0].scores[0], next(row for row in result.cells[0].scores if row.variant != MAIN)
    assert (own.variant, own.scorer, own.value, own.n, own.tried, own.failed) == (MAIN, "detection", None, 0, 0, 0)
    assert floor.n == 3 and not any("failed" in warning for warning in result.warnings)
    assert "– (none tried)" in CliRunner().invoke(main, ["report", str(tmp_path / "run")]).output
    report = tmp_path / "run" / "report"
    for page in ("report.md", "index.html"):
        assert "none tried" in (report / page).read_text()
    rows = list(csv.DictReader((report / "leaderboard.csv").read_text().splitlines()))
    assert [(row["value"], row["tried"]) for row in rows if row["variant"] == MAIN] == [("", "0")]


def test_prompts_stay_readable_when_the_scorer_that_needs_decoys_is_removed(tmp_path):
    with truthful_server() as server:
        saeval.run(spec(server, scorers={"detection": {}, "fuzzing": {}}), out=tmp_path / "run")
        fewer = spec(server, scorers={"detection": {}})
        resumed, fresh = saeval.run(fewer, out=tmp_path / "run"), saeval.run(fewer, out=tmp_path / "fresh")
    assert resumed.calls.equals(fresh.calls)


def test_answers_that_were_cut_are_asked_again_once_the_limit_is_raised(tmp_path):
    def role(server, limit):
        return {
            "model": "openai_compatible/rules",
            "api_base": server.url,
            "max_tokens": 100,
            "max_tokens_if_cut": limit,
        }

    def cut(body, number):
        asked = body["messages"][-1]["content"]
        short = body["max_tokens"] <= 200 and asked.startswith("Explanation:") and len(asked) % 3 == 0
        return content("I think that", finish_reason="length") if short else None

    with truthful_server() as server:
        server.chooses = cut
        before = spec(server, baselines=[], llms={r: role(server, 200) for r in ("explainer", "judge")})
        after = spec(server, baselines=[], llms={r: role(server, 1000) for r in ("explainer", "judge")})
        first = saeval.run(before, out=tmp_path / "run")
        asked = len(server.calls)
        resumed = saeval.run(after, out=tmp_path / "run")
        assert rows(first)["detection"].unparsed and not rows(resumed)["detection"].unparsed
        assert len(server.calls) < asked + asked  # whole answers are not asked for again
        asked = len(server.calls)
        fresh = saeval.run(after, out=tmp_path / "fresh")
        assert resumed.cells == fresh.cells and len(server.calls) == asked


def test_nothing_of_an_earlier_model_is_said_about_the_present_one(tmp_path):
    with truthful_server() as server:
        before, after = spec(server), spec(server)
        before["llms"]["judge"] = {**before["llms"]["judge"], "model": "openai_compatible/short"}
        server.chooses = lambda body, number: content(
            truthful(body["messages"])
        )  # which reads 100 tokens of any prompt
        first = saeval.run(before, out=tmp_path / "run")
        assert any(warning.startswith("judge: the server read") for warning in first.warnings)
        server.chooses, server.tokens = (lambda body, number: None), len
        second = saeval.run(after, out=tmp_path / "run")
    assert not any(warning.startswith("judge: the server read") for warning in second.warnings)
    assert {ledger.model for ledger in second.ledger if ledger.role == "judge"} == {
        "openai_compatible/short",
        "openai_compatible/rules",
    }  # both were paid for
    assert list_runs(tmp_path / "run")[0].models == ("openai_compatible/rules",)


def test_list_of_runs_names_models_that_only_baselines_ask_and_none_of_an_earlier_spec(tmp_path):
    with truthful_server() as server:
        before = spec(server, baselines=[], scorers={"detection": {}})
        after = {**before, "baselines": [{"use": "contrastive", "llm": "other"}]}
        other = {**before["llms"]["judge"], "model": "openai_compatible/a with b"}
        before["llms"] = {**before["llms"], "explainer": {**other, "model": "openai_compatible/gone"}}
        after["llms"] = {**after["llms"], "other": other}
        for task in (before, after):
            result = saeval.run(task, out=tmp_path / "run")
    names = {ledger.model: ledger.earlier for ledger in result.ledger}
    assert names == {name: name.endswith("gone") for name in names} and len(names) == 3
    assert sorted(list_runs(tmp_path / "run")[0].models) == ["openai_compatible/a with b", "openai_compatible/rules"]


def test_results_of_an_earlier_spec_keep_it_and_say_so_if_the_changed_one_fails(tmp_path):
    run = tmp_path / "run"
    with truthful_server() as server:
        first = saeval.run(spec(server, baselines=[]), out=run)
        before = (run / "spec.yaml").read_text()
        changed = spec(server, baselines=[], source={"use": "synthetic", "with": {"n_latents": 8, "documents": 2}})
        with pytest.raises(InputError, match="no latent has"):
            saeval.run(changed, out=run)
        found = saeval.read(run)
        assert found.cells == first.cells and (run / "spec.yaml").read_text() == before
        assert "these results are of an earlier spec" in found.warnings[-1] and "failed" in found.warnings[-1]
        head = list_runs(run)[0]
        assert (head.status, head.headline) == ("failed", "")
        again = saeval.run(spec(server, baselines=[]), out=run)
        assert again.warnings == first.warnings == saeval.read(run).warnings
        changed["source"]["with"]["documents"] = 70
        saeval.run(changed, out=run)
        assert "documents: 70" in (run / "spec.yaml").read_text() and saeval.read(run).warnings == first.warnings


def test_run_whose_reports_cannot_be_written_has_failed_and_resumes(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def full(*_):
        raise InputError("no space left")

    with truthful_server() as server:
        task = spec(server, baselines=[])
        with monkeypatch.context() as patch, pytest.raises(InputError, match="no space left"):
            patch.setattr("saeval._run.runner.write_cells", full)
            saeval.run(task, out=run)
        assert [(head.status, head.reason) for head in list_runs(run)] == [("failed", "no space left")]
        asked = len(server.calls)
        saeval.run(task, out=run)
    assert list_runs(run)[0].status == "done" and len(server.calls) == asked
