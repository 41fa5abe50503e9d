"""Presets that imitate other tools: every constant has a known answer, and every flaw is owned up to and can be seen."""

from __future__ import annotations

import asyncio
import math
import random
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import yaml
from planted_run import spec, truthful_server
from root import ROOT
from saeval_plugins.samplers import DelphiSampler, Quantiles, SAEBench
from saeval_plugins.scorers import Detection, Fuzzing
from small_stores import dataset, dense, write

import saeval
from saeval.plugin import Explanation, LatentId, LatentRecord, derive_rng
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.testing.contracts import check_sampler, check_scorer
from saeval.testing.planted import planted_explanation, planted_store, rule_judge
from saeval.testing.toys import ScriptedLLM, context, make_examples

PAGE = ROOT / "docs" / "compatibility.md"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Four planted latents, each firing on about 1 % of the tokens, in over 500 windows of 32."""
    return planted_store(tmp_path_factory.mktemp("presets") / "store", n_latents=4, documents=300)


def sampled(sampler, store, latent=0, seed=0):
    return sampler.sample(store, LatentId("planted", latent), derive_rng(seed, "sample", latent))


def ranked(store, latent, window):
    """Windows of a latent, strongest first, recomputed one by one."""
    found: dict[int, float] = {}
    tiles = (store.length - store.lead) // window
    for position, value in zip(*store.activations(latent), strict=True):
        row, offset = divmod(int(position), store.length)
        tile = (offset - store.lead) // window
        if store.lead + (tile + 1) * window <= store.lengths[row]:
            number = row * tiles + tile
            found[number] = max(found.get(number, 0.0), float(value))
    return sorted(found, key=lambda number: (-found[number], number))


def numbers(store, examples, window):
    tiles = (store.length - store.lead) // window
    return [e.context * tiles + (e.start - store.lead) // window for e in examples]


@pytest.mark.parametrize(
    "sampler",
    [DelphiSampler(), DelphiSampler(leak=False), *(DelphiSampler(show=show) for show in ("random", "top", "mix")),
     *(SAEBench(leak=leak, unverified=unverified) for leak in (True, False) for unverified in (True, False))],
    ids=str,
)  # fmt: skip
def test_contract(sampler):
    check_sampler(sampler)


# --- What a record may own up to ---


def test_record_refuses_each_flaw_unless_it_is_declared():
    explain, score = make_examples(seed=1), make_examples(seed=2, first=100)
    shared = replace(score, activating=(explain.activating[0], *score.activating))
    silent = replace(explain.activating[0], active=False, context=999)
    unverified = replace(score, non_activating=(silent, *score.non_activating))

    def record(scored, *flaws):
        return LatentRecord(explain.latent, 1, 1, 0.1, explain, scored, frozenset(flaws))

    with pytest.raises(ValueError, match="are in both"):
        record(shared, "unverified")
    with pytest.raises(ValueError, match="wrong side"):
        record(unverified, "leak")
    assert record(shared, "leak") and record(unverified, "unverified")
    called_active = replace(score, non_activating=(replace(silent, active=True),))
    with pytest.raises(ValueError, match="wrong side"):
        record(called_active, "leak", "unverified")


def test_only_these_samplers_declare_flaws(planted):
    assert sampled(DelphiSampler(), planted).flaws == {"leak"}
    assert sampled(SAEBench(), planted).flaws == {"leak", "unverified"}
    assert sampled(SAEBench(leak=False), planted).flaws == {"unverified"}
    assert sampled(SAEBench(unverified=False), planted).flaws == {"leak"}
    for sampler in (DelphiSampler(leak=False), SAEBench(leak=False, unverified=False), Quantiles()):
        record = sampled(sampler, planted)
        sides = [{e.document for e in (*s.activating, *s.non_activating)} for s in (record.explain, record.score)]
        assert record.flaws == frozenset() and not sides[0] & sides[1]


# --- Delphi ---


def test_delphi_draws_what_the_same_arithmetic_draws(planted):
    ids = ranked(planted, 0, 32)
    size = len(ids) // 10
    assert len(ids) % 10, "the remainder should matter"
    record = sampled(DelphiSampler(), planted)
    state = random.getstate()
    try:
        for part, each in ((record.explain, 4), (record.score, 5)):
            random.seed(22)
            drawn = [random.sample(ids[q * size : (q + 1) * size], each) for q in range(10)]
            assert numbers(planted, part.activating, 32) == [number for part in drawn for number in part]
    finally:
        random.setstate(state)
    assert [e.decile for e in record.score.activating] == [q for q in range(10) for _ in range(5)]
    assert not set(numbers(planted, record.score.activating, 32)) & set(ids[10 * size :])
    assert len(record.score.non_activating) == 50 and record.explain.non_activating == ()


def test_delphi_strengths_are_rounded_up(planted):
    examples = sampled(DelphiSampler(), planted).explain
    highest = float(planted.activations(0)[1].max())
    assert examples.max_activation == highest
    window = examples.activating[-1]
    assert examples.strengths(window) == [math.ceil(10 * float(a) / highest) for a in window.activations]


@pytest.mark.parametrize(
    ("show", "shown"),
    [("quantiles", None), ("top", lambda n: range(40)), ("random", lambda n: random.Random(22).sample(range(n), 40))],
)
def test_delphi_shows_what_it_is_told_to(planted, show, shown):
    ids = ranked(planted, 1, 32)
    found = numbers(planted, sampled(DelphiSampler(show=show), planted, 1).explain.activating, 32)
    assert len(found) == 40
    assert shown is None or found == [ids[rank] for rank in shown(len(ids))]


def test_delphi_mix_shows_8_strongest_and_3_of_each_tenth_of_the_others(planted):
    ids = ranked(planted, 1, 32)
    found = numbers(planted, sampled(DelphiSampler(show="mix"), planted, 1).explain.activating, 32)
    size = (len(ids) - 8) // 10
    assert found[:8] == ids[:8]
    assert [(ids.index(number) - 8) // size for number in found[8:]] == [q for q in range(10) for _ in range(3)]


def test_delphi_shows_the_explainer_a_fifth_of_the_windows_it_scores():
    def shared(windows):
        shown, scored = (DelphiSampler()._by_quantile(windows, wanted) for wanted in (40, 50))
        return [sum(rank in shown[0] for rank, q in zip(*scored, strict=True) if q == decile) for decile in range(10)]

    for windows in (2_000, 10_000, 100_000):
        assert shared(windows) == [4, 3, 2, 1, 0, 0, 0, 0, 0, 0]
    assert sum(shared(200)) == 20
    assert {sum(shared(windows)) >= 10 for windows in range(200, 5_000, 10)} == {True}


def test_delphi_needs_a_window_of_each_part():
    with pytest.raises(ValueError, match="at least quantiles, 10"):
        DelphiSampler(explain=5)


@pytest.mark.parametrize("window", [32, 16])
def test_delphi_marks_wrong_tokens_at_the_same_places_everywhere(window):
    def places(n):
        examples = make_examples(window=window)
        positives = tuple(replace(e, activations=np.float32(np.arange(window) < n)) for e in examples.activating)
        asked = Fuzzing(negatives="fixed").questions(replace(examples, activating=positives), context())
        return {tuple(_marked(q.shown)) for q in asked if not q.truth}

    known = {32: {1: (24,), 3: (24, 30, 31), 5: (4, 7, 24, 30, 31)}, 16: {1: (12,)}}
    for n, marks in known[window].items():
        assert places(n) == {marks}


def test_delphi_marks_as_many_wrong_tokens_as_fire_on_average_rounded_up():
    examples = make_examples(activating=3)
    firing = [1, 1, 2]
    positives = tuple(
        replace(e, activations=np.float32(np.arange(24) < n)) for e, n in zip(examples.activating, firing, strict=True)
    )
    asked = Fuzzing(negatives="fixed").questions(replace(examples, activating=positives), context())
    assert {len(_marked(q.shown)) for q in asked if not q.truth} == {2}
    assert [_marked(q.shown) for q in asked if q.truth] == [[0], [0], [0, 1]]


def test_fixed_marks_pass_the_contract():
    check_scorer(Fuzzing(negatives="fixed", mode="list"), llm=rule_judge)


# --- SAEBench ---


def spread(tmp_path, values):
    """A store of contexts of 64 tokens in which a latent fires once, in the middle, with these strengths."""
    data = dataset(contexts=len(values), documents=len(values))
    activations = np.zeros((*data.tokens.shape, 1), dtype=np.float32)
    activations[:, 30, 0] = values
    return write(tmp_path / "spread", data, activations)


def test_saebench_scores_14_windows_of_21_tokens_and_shows_15(planted):
    record = sampled(SAEBench(), planted)
    assert [len(record.explain.activating), len(record.score.activating), len(record.score.non_activating)] == [
        15,
        4,
        10,
    ]
    levels = [e.max_activation for e in record.explain.activating]
    assert levels == sorted(levels, reverse=True)
    for example in (*record.explain.activating, *record.score.activating):
        assert len(example.tokens) == 21 and example.activations[10] > 0, "the centre fires"


def test_saebench_deals_out_the_12_strongest_tokens_that_lie_apart(planted):
    firings = sorted(zip(*planted.activations(2), strict=True), key=lambda p: -p[1])
    strongest: list[int] = []
    for position, _ in firings:
        row, offset = divmod(int(position), planted.length)
        inside = planted.lead + 10 <= offset < planted.lengths[row] - 10
        if inside and all(abs(position - other) > 10 for other in strongest):
            strongest.append(int(position))
    record = sampled(SAEBench(), planted, 2)
    centres = [
        [e.context * planted.length + e.start + 10 for e in part.activating] for part in (record.explain, record.score)
    ]
    assert [len(set(side) & set(strongest[:12])) for side in centres] == [10, 2]
    values = dict(firings)
    least = min(values[position] for position in strongest[:12])
    assert all(values[c] < least for c in (*centres[0], *centres[1]) if c not in strongest[:12])


def test_saebench_weighs_by_the_square_of_the_activation(tmp_path):
    store = spread(tmp_path, [10.0] * 12 + [1.0, 3.0])
    sampler = SAEBench(explain_weighted=0, score_weighted=1)
    drawn = [min(e.max_activation for e in sampled(sampler, store, seed=s).score.activating) for s in range(300)]
    assert np.mean([value == 3.0 for value in drawn]) == pytest.approx(0.9, abs=0.05)


def test_saebench_leaves_out_latents_with_fewer_than_19_usable_firings(tmp_path):
    values = [10.0] * 12 + [1.0 + i / 10 for i in range(7)]
    assert sampled(SAEBench(), spread(tmp_path / "enough", values)) is not None
    assert sampled(SAEBench(), spread(tmp_path / "weighted", values[:-1])) is None
    assert sampled(SAEBench(), spread(tmp_path / "top", values[1:])) is None


def test_saebench_calls_weak_windows_silent(tmp_path):
    store = spread(tmp_path, [10.0] * 12 + [0.0625] * 7)  # less than a hundredth of the maximum
    record = sampled(SAEBench(), store)
    assert [e.max_activation for e in record.score.activating] == [10.0, 10.0]
    assert sum(e.max_activation == 0.0625 for e in record.score.non_activating) >= 2
    honest = sampled(SAEBench(unverified=False), store)
    assert len(honest.score.activating) == 4 and not any(e.activations.any() for e in honest.score.non_activating)


def test_saebench_calls_windows_silent_in_which_the_latent_fires(tmp_path):
    data = dataset(contexts=400, text=128, documents=40)
    density = 0.05
    store = write(tmp_path / "dense", data, dense(data, 4, density), budget=10**6)
    records = [sampled(SAEBench(non_activating=200), store, latent) for latent in range(4)]
    called = [e for r in records for e in r.score.non_activating]
    assert not any(e.active for e in called)
    assert np.mean([e.activations.any() for e in called]) == pytest.approx(1 - (1 - density) ** 21, abs=0.05)
    verified = sampled(SAEBench(unverified=False), store)
    assert not any(e.activations.any() for e in verified.score.non_activating)


def test_without_a_leak_no_two_activating_windows_of_saebench_overlap(tmp_path):
    data = dataset(contexts=400, text=128, documents=400)
    begins = np.random.default_rng(0).random((400, 129)) < 0.002
    values = sum(np.roll(begins, shift, axis=1) * (1 + shift / 8) for shift in range(16))[
        ..., None
    ]  # runs of 16 tokens
    store = write(tmp_path / "runs", data, (values * data.mask[..., None]).astype(np.float32))
    record = sampled(SAEBench(leak=False, score_top=10, score_weighted=10), store)
    starts = np.sort([e.context * store.length + e.start for e in record.score.activating])
    assert len(starts) == 20 and np.diff(starts).min() >= 21


def test_saebench_centres_no_window_on_a_special_token(tmp_path):
    data = dataset(contexts=400, text=128, documents=40)
    data.mask[:, ::3] = False
    store = write(tmp_path / "special", data, dense(data, 4, 0.02), budget=10**6)
    record = sampled(SAEBench(non_activating=50), store)
    windows = (*record.score.activating, *record.score.non_activating)
    assert len(windows) == 54 and all((window.start + 10) % 3 for window in windows)


def test_windows_cannot_reach_beyond_the_text(planted):
    latent = LatentId("planted", 0)
    (window,) = planted.examples_at(latent, [planted.lead], 21)
    assert window.start == planted.lead and len(window.tokens) == 21
    for position in (0, planted.length - 20):
        with pytest.raises(ValueError, match="beyond the text"):
            planted.examples_at(latent, [position], 21)


def test_saebench_window_needs_a_centre():
    with pytest.raises(ValueError, match="odd"):
        SAEBench(window=20)


# --- What the flaws are worth, to judges that know nothing ---


def _marked(window):
    """Numbers of the marked words."""
    found, inside, word = [], False, 0
    for piece in re.findall(r"<<|>>|\w+", window):
        if piece in ("<<", ">>"):
            inside = piece == "<<"
        else:
            found += [word] * inside
            word += 1
    return found


def _windows(request):
    return re.findall(r"^Window \d+: (.*)$", request.messages[-1].content, re.MULTILINE)


def judging(rule):
    """A judge that answers for each window by a rule."""
    return ScriptedLLM(lambda request: str([int(rule(window)) for window in _windows(request)]))


def mean_score(sampler, scorer, store, judge, metric="balanced_accuracy"):
    """Mean over the planted latents, each sampled ten times, of a scorer's metric, when they are explained truly."""
    found = []
    for latent, seed in product(range(store.n_latents), range(10)):
        record = sampled(sampler, store, latent, seed)
        told = Explanation(text=planted_explanation(latent))
        score = asyncio.run(scorer.score(told, record.score, context(judge(record), seed=seed)))
        assert score.status == "ok", score.reason
        found.append(score.values[metric])
    return float(np.mean(found))


def by_place(record):
    """Calls marks wrong when one stands at three quarters of the window, whatever the words."""
    return judging(lambda window: 24 not in _marked(window))


def by_memory(record):
    """Calls a window activating when five of its words in a row were shown to the explainer, whatever they mean."""

    def runs(text):
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    shown = set().union(*(runs(e.text) for e in record.explain.activating))
    return judging(lambda window: bool(runs(window) & shown))


def nothing(record):
    """Finds nothing anywhere."""
    return judging(lambda window: False)


def truth(record):
    """Finds exactly what the explanation says."""
    return rule_judge()


def effects(store):
    """Scores under a flaw, and without it."""
    twin = Quantiles(explain=40, score=50, non_activating={"n": 50})
    fixed, matched = (Fuzzing(negatives=n, mode="list") for n in ("fixed", "matched"))
    detection, listed = Detection(mode="list"), Detection(batch=14, mode="list")
    honest = SAEBench(leak=False, unverified=False)
    return {
        "uses only positions of marks": (mean_score(DelphiSampler(), fixed, store, by_place), mean_score(twin, matched, store, by_place)),
        "remembers what the explainer saw": (mean_score(DelphiSampler(), detection, store, by_memory), mean_score(twin, detection, store, by_memory)),
        "always answers “none”": (mean_score(SAEBench(), listed, store, nothing, "accuracy"), mean_score(honest, listed, store, nothing)),
        "is always correct": (mean_score(SAEBench(), listed, store, truth, "accuracy"), mean_score(honest, listed, store, truth)),
    }  # fmt: skip


def test_flaws_lift_uninformed_judges_and_the_page_says_how_far(planted):
    found = effects(planted)
    seen = found["uses only positions of marks"]
    assert seen[0] > 0.95 and seen[1] == pytest.approx(0.5, abs=0.03)
    remembered = found["remembers what the explainer saw"]
    assert remembered[0] >= 0.6 and remembered[1] == 0.5
    none = found["always answers “none”"]
    assert none == (pytest.approx(10 / 14), 0.5)
    right = found["is always correct"]
    assert right[0] == pytest.approx(1 - 10 / 14 * (1 - 0.99**21), abs=0.03) and right[1] == 1
    page = PAGE.read_text()
    for judge, (flawed, corrected) in found.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {judge} ")]
        assert row.endswith(f" {flawed:.2f} | {corrected:.2f} |"), (row, flawed, corrected)


# --- The presets ---


def including(path, preset, **further):
    base = spec_parts(further)
    path.write_text(yaml.safe_dump({**base, "include": [f"saeval://presets/{preset}.yaml"]}))
    return path


def spec_parts(further):
    """The planted task without what a preset gives."""
    given = ("latents", "sampler", "explainer", "scorers", "baselines", "llms")
    task = {k: v for k, v in spec(_Nowhere()).items() if k not in given}
    model = {"model": "openai_compatible/rules", "api_base": _Nowhere.url}
    return {**task, "llms": {"explainer": model, "judge": model}, **further}


class _Nowhere:
    url = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("preset", "options", "ranks"),
    [
        ("delphi-compat", DelphiSampler(), "detection.balanced_accuracy"),
        ("saebench-compat", SAEBench(), "detection.accuracy"),
    ],
)
def test_preset_is_the_samplers_defaults(tmp_path, preset, options, ranks):
    task = load_task(including(tmp_path / "task.yaml", preset), registry=Registry())
    assert task.cells[0].sampler.plugin == options
    assert task.rank_by == ranks


def run(tmp_path, monkeypatch, preset, **further):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    source = {"use": "synthetic", "with": {"n_latents": 4, "documents": 300}}
    with truthful_server() as server:
        llms = spec(server)["llms"]
        path = including(tmp_path / "task.yaml", preset, llms=llms, source=source, **further)
        return saeval.run(path, out=tmp_path / "run"), (tmp_path / "run" / "report" / "report.md").read_text()


def test_delphi_preset_beside_its_corrected_twin(tmp_path, monkeypatch):
    (page,) = [b for b in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL) if "delphi-compat" in b]
    shown = yaml.safe_load(page)
    further = {key: shown[key] for key in ("matrix", "sampler", "scorers")}
    result, report = run(tmp_path, monkeypatch, "delphi-compat", latents={"n": 2}, **further)
    assert [cell.cell for cell in result.cells] == ["protocol=delphi", "protocol=corrected"]
    for cell in result.cells:
        values = {(row.scorer, row.metric): row.value for row in cell.scores}
        assert values["detection", "balanced_accuracy"] == values["fuzzing_fixed", "balanced_accuracy"] == 1.0
        assert values["fuzzing", "balanced_accuracy"] == 1.0
    (warning,) = [w for w in result.warnings if "does not separate" in w]
    shared, total = map(int, re.search(r"(\d+) of (\d+) scored", warning).groups())
    assert warning.startswith("protocol=delphi: ") and total == 100 and 20 <= shared <= 30
    assert warning in saeval.read(tmp_path / "run").warnings
    assert f"{shared} of 100 scored activating windows share text" in report


def test_saebench_preset_counts_the_windows_it_is_wrong_about(tmp_path, monkeypatch):
    result, report = run(tmp_path, monkeypatch, "saebench-compat", latents={"n": 4})
    rows = {row.metric: row.value for row in result.cells[0].scores}
    leak, unverified = result.warnings[-2:]
    fires, total = map(int, re.search(r"fires in (\d+) of (\d+)", unverified).groups())
    assert "does not separate" in leak and total == 40 and fires > 0
    assert rows["accuracy"] == pytest.approx(1 - fires / (4 * 14)), "the judge is right, the labels are not"
    assert rows["balanced_accuracy"] == pytest.approx(1 - fires / total / 2)
    assert f"fires in {fires} of 40" in report


def test_specs_of_the_page_are_tasks(tmp_path):
    shown = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        task = load_task(path, registry=Registry(), check=False)
        assert task.rank_by.startswith("detection.")
    assert len(shown) == 2
