"""Contract checks for every kind of plugin; the built-in plugins pass them, too."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from saeval._util import LLMError, ParseError, Refused, StoreError, counted, derive_rng
from saeval.activations import ActivationStore, ActivationWriter
from saeval.models import SparseCoder
from saeval.plugin.base import (
    LLM,
    ActivationSource,
    Coder,
    Explainer,
    Need,
    Plugin,
    RunProgress,
    Sampler,
    Scorer,
    Step,
    Tracker,
)
from saeval.records import (
    CellResult,
    Examples,
    Explanation,
    FillReply,
    FillRequest,
    LanguageModel,
    LatentId,
    LatentRecord,
    Ledger,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
    RunResult,
    Score,
    ScoreRow,
    metrics_mistake,
)
from saeval.testing.planted import planted_explanation, planted_tokens, rule_explainer, rule_judge
from saeval.testing.toys import ScriptedLLM, context, make_examples

R = TypeVar("R")
S = TypeVar("S", Explanation, Score)
AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)

_OF_CLASSIFIERS = ("balanced_accuracy", "auroc")
"""Headline metrics of scorers that judge every window."""


def check_scorer(scorer: Scorer, llm: Callable[[], LanguageModel] | None = None, **lent: Any) -> None:
    """Check a scorer: deterministic, no invented answers, values in range, input unchanged.

    Call it from a plain (not async) test. If the scorer classifies windows, it warns of windows without an outcome or
    with several, and of outcomes whose `active` contradicts the window.

    Args:
        scorer: The scorer.
        llm: Returns a model that answers as the scorer expects; the score must then be `ok`. By default a judge of
            planted words is used, whose replies the scorer may not be able to parse.
        **lent: Other fields of the context, for scorers that need them.

    Raises:
        AssertionError: If the contract is violated, with the reason.

    Example:
        >>> from saeval.plugin import Metric
        >>> class Words(Scorer):
        ...     name = "words"
        ...     metrics = (Metric("words", high=1000),)
        ...
        ...     async def score(self, explanation, examples, context):
        ...         return Score(values={"words": float(len(explanation.text.split()))})
        >>> check_scorer(Words())
        >>> class Dishonest(Words):
        ...     metrics = (Metric("words", high=1),)
        >>> check_scorer(Dishonest())
        Traceback (most recent call last):
        AssertionError: ...
    """
    for note in scorer_notes(scorer, llm, **lent):
        warnings.warn(note, stacklevel=2)


def scorer_notes(scorer: Scorer, llm: Callable[[], LanguageModel] | None = None, **lent: Any) -> list[str]:
    """Check a scorer like `check_scorer`, and return what is unusual in its outcomes, but right for some scorers."""
    _check_plugin(scorer)
    mistake = metrics_mistake(scorer.metrics)
    assert mistake is None, f"the scorer {mistake}"
    explanation = Explanation(text=planted_explanation(0))
    examples = make_examples(seed=1)

    def score(model: LanguageModel, given: Examples = examples, seed: int = 0) -> Score:
        with _lent(scorer, model) as model, _untouched(given):
            answer = scorer.score(explanation, given, context(model, seed=seed, **lent))
            result = asyncio.run(_made("score", answer, Score))
        _check_score(scorer, result, given)
        return result

    make = llm or (lambda: rule_judge(scores="logprobs" in scorer.needs()))
    first = score(make())
    _check_cautions(scorer.cautions(first.values, [examples.latent]))
    assert llm is None or first.status == "ok", f"with the given model the score is {first.status}: {first.reason}"
    assert score(make()) == first, "the same seed gives another score"
    for lopsided in (make_examples(seed=1, activating=0), make_examples(seed=1, non_activating=0)):
        score(make(), lopsided)
    if scorer.llm_role is not None:
        for name, model in _useless_models().items():
            result = score(model)
            assert result.status != "ok" and not result.values, f"{name} replies give a score: {result.values}"
            assert result.reason, f"{name} replies give no reason"
    return list(_unusual_outcomes(scorer, first, examples))


def check_explainer(explainer: Explainer, llm: Callable[[], LanguageModel] | None = None, **lent: Any) -> None:
    """Check an explainer: deterministic, input unchanged, no invented explanation after a failure.

    Call it from a plain (not async) test.

    Args:
        explainer: The explainer.
        llm: Returns a model that answers as the explainer expects; the explanation must then be `ok`.
        **lent: Other fields of the context, for explainers that need them.

    Raises:
        AssertionError: If the contract is violated, with the reason.

    Example:
        >>> class First(Explainer):
        ...     name = "first"
        ...
        ...     async def explain(self, examples, context):
        ...         return Explanation(text=f"tokens such as{examples.activating[0].tokens[0]}")
        >>> check_explainer(First())
    """
    _check_plugin(explainer)
    examples = make_examples(seed=2)

    def explain(model: LanguageModel) -> Explanation:
        with _lent(explainer, model) as model, _untouched(examples):
            answer = explainer.explain(examples, context(model, **lent))
            result = asyncio.run(_made("explain", answer, Explanation))
        assert Explanation.model_validate_json(result.model_dump_json()) == result, "the explanation is not JSON"
        assert bool(result.text.strip()) == (result.status == "ok"), f"status {result.status} with text {result.text!r}"
        assert result.status == "ok" or result.reason, f"status {result.status} without a reason"
        return result

    make = llm or rule_explainer
    first = explain(make())
    assert llm is None or first.status == "ok", f"with the given model the status is {first.status}: {first.reason}"
    assert explain(make()) == first, "the same seed gives another explanation"
    if explainer.llm_role is not None:
        models = _useless_models()
        explain(models.pop("garbage"))  # an explainer may accept any text as an explanation
        for name, model in models.items():
            assert explain(model).status == "failed", f"{name} replies give an explanation"


def check_sampler(sampler: Sampler) -> None:
    """Check a sampler: deterministic, disjoint sets of windows, windows equal to the store, `None` for too little data.

    Flaws that its records declare are allowed.

    Args:
        sampler: The sampler.

    Raises:
        AssertionError: If the contract is violated, with the reason.
    """
    _check_plugin(sampler)
    with tempfile.TemporaryDirectory() as folder:
        store, odd = _awkward_store(Path(folder) / "store")
        for index in range(store.n_latents):
            latent = LatentId("planted", index)
            first, again = (sampler.sample(store, latent, derive_rng(0, "sample", index)) for _ in range(2))
            for record in (first, again):
                assert record is None or isinstance(record, LatentRecord), _wrong("sample", record, LatentRecord)
            assert _content(first) == _content(again), f"latent {index}: the same seed gives other windows"
            if index in odd:
                never_silent = store.firings[index] == store.n_tokens
                declared = first is not None and "unverified" in first.flaws and never_silent
                assert first is None or declared, f"latent {index}, which {odd[index]}, is sampled"
            else:
                assert first is not None, f"latent {index}, which fires in a quarter of all windows, is not sampled"
                _check_record(first, sampler, store)


def check_source(source: ActivationSource, tmp_path: Path) -> None:
    """Check a source: deterministic, resumes after an interruption, and its activations can be read.

    These are above 0, none is on a special token, and each latent's are in the order of their positions.

    Args:
        source: The source.
        tmp_path: An empty directory.

    Raises:
        AssertionError: If the contract is violated, with the reason.
    """
    _check_plugin(source)
    _check_cautions(source.cautions())
    assert isinstance(source.shares(), str | int | float | list | dict | None), "shares() is not JSON"

    def collect(name: str, **options: Any) -> ActivationStore:
        writer = ActivationWriter(tmp_path / name, source=type(source).name, **options)
        try:
            source.collect(writer)
            store = writer.finish()
            for latent in np.flatnonzero(store.firings).tolist():  # as runs read them
                store.activations(latent)
        except StoreError as error:
            raise AssertionError(str(error)) from error
        return store

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done >= total / 2:
            raise Interrupted

    store = collect("first")
    again = collect("again")
    try:
        collect("broken", budget=1, progress=interrupt)
    except Interrupted:
        pass
    else:
        raise AssertionError("the source never reports its progress; call writer.advance()")
    resumed = collect("broken", budget=1)
    for other, what in ((again, "collecting twice"), (resumed, "resuming after an interruption")):
        for name in ("tokens", "documents", "indptr", "position", "value"):
            assert np.array_equal(getattr(store, name), getattr(other, name)), f"{what} gives other {name}"
    assert len(store.position), "no latent ever fires"
    context_, offset = np.divmod(store.position.astype(np.int64), store.length)
    mask = np.load(store.path / "mask.npy")
    assert mask[context_, offset].all(), "activations of special tokens are counted"
    assert (store.value > 0).all(), "values that are not above 0 are stored as activations"


def check_coder(coder: Coder, d_in: int) -> None:
    """Check a coder: its encoding is sparse, ordered, deterministic, and independent of other rows in the batch.

    Args:
        coder: The coder.
        d_in: Width of the activations to encode.

    Raises:
        AssertionError: If the contract is violated, with the reason.
    """
    import torch

    _check_plugin(coder)
    sae: object = coder.load("cpu", d_in)
    assert isinstance(sae, SparseCoder), _wrong("load", sae, SparseCoder)
    assert sae.d_in == d_in, f"it reads {sae.d_in} features instead of {d_in}"
    x = torch.from_numpy(derive_rng(0, "check_coder").normal(size=(17, d_in)).astype(np.float32))
    before = x.clone()
    rows, latents, values = sae.encode(x)
    assert torch.equal(x, before), "encoding changes its input"
    assert rows.shape == latents.shape == values.shape and rows.ndim == 1, "rows, latents, values differ in shape"
    assert rows.dtype == latents.dtype == torch.int64, "rows and latents are not int64"
    assert bool((rows.diff() >= 0).all()), "rows do not ascend"
    assert bool(((rows >= 0) & (rows < 17) & (latents >= 0) & (latents < sae.n_latents)).all()), "indices out of range"
    assert bool((torch.isfinite(values) & (values != 0)).all()), "values are zero or not finite"
    assert len(set(zip(rows.tolist(), latents.tolist(), strict=True))) == len(rows), "a latent appears twice in a row"
    again = coder.load("cpu", d_in).encode(x)
    assert all(torch.equal(a, b) for a, b in zip((rows, latents, values), again, strict=True)), "loading twice differs"

    def dense(batch: torch.Tensor) -> torch.Tensor:
        sparse = sae.encode(batch)
        out = torch.zeros(len(batch), sae.n_latents)
        out[sparse.rows, sparse.latents] = sparse.values.float()
        return out

    alone = torch.cat([dense(x[i : i + 1]) for i in range(17)])
    assert torch.allclose(alone, dense(x), atol=1e-4, rtol=1e-3), "a row's encoding depends on the others in the batch"
    assert len(sae.encode(x[:0]).rows) == 0, "an empty batch has activations"
    decoded = sae.decode(sae.encode(x), 17)
    assert decoded is None or (decoded.ndim == 2 and len(decoded) == 17), "decode() does not return a row per input row"
    for direction in (sae.direction(0), sae.encoder_direction(0)):
        assert direction is None or direction.ndim == 1, "a direction is not a vector"
    assert sae.architecture, "the architecture has no name"


def check_llm(llm: LLM) -> None:
    """Check a language model: it answers or raises an error, and scores continuations if and only if `can_score`.

    Call it from a plain (not async) test. It sends a few short requests to the model.

    Args:
        llm: The language model.

    Raises:
        AssertionError: If the contract is violated, with the reason.
    """
    _check_plugin(llm)
    assert llm.model, "the model has no name"
    asyncio.run(_ask_everything(llm))


def check_tracker(tracker: Tracker) -> None:
    """Check a tracker: it accepts progress, complete and partial runs, and does not change the run directory.

    It writes real entries to the destination set by its options and the environment.

    Args:
        tracker: The tracker.

    Raises:
        AssertionError: If the contract is violated, with the reason.
    """
    _check_plugin(tracker)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "run")
        (folder / "report").mkdir(parents=True)
        (folder / "report" / "report.md").write_text("# A run\n", encoding="utf-8")
        for result in (_some_result(partial=True), _some_result(partial=False), _some_result(partial=False)):
            file = folder / "results.json"
            file.write_text(result.model_dump_json(by_alias=True), encoding="utf-8")
            before = file.read_bytes()
            numbers = {"done/explain": 0.5, "so_far/a=1/detection.balanced_accuracy": 0.75}
            progress = RunProgress(result.task, result.spec_sha, result.run_id, folder, 1.0, numbers)
            tracker.follow(progress)
            assert tracker.track(result, folder) is None, "`track` returns something"
            assert file.exists() and file.read_bytes() == before, "results.json is changed"


def _some_result(*, partial: bool) -> RunResult:
    """Return a small result with difficult values: no value, no interval, an unknown price, special characters."""
    row = ScoreRow(
        scorer="detection",
        plugin="saeval/detection 0",
        metric="balanced_accuracy",
        higher_is_better=True,
        range=(0, 1),
        value=0.75,
        median=0.7,
        ci95=(0.6, 0.9),
        n=8,
        tried=10,
        failed=2,
        unparsed=1,
        coverage=0.8,
        floor={"chance": 0.5},
        lift=0.25,
        judge="a/judge",
        usd=None,
    )
    nothing = row.model_copy(
        update={"scorer": "fuzzing", "value": None, "median": None, "ci95": None, "n": 0, "lift": None}
    )
    cell = CellResult(
        cell="coder=a+b,layer=9",
        axes={"coder": "a+b", "layer": "9"},
        coder={},
        subject="a/model",
        explainer="default",
        measures={"l0": 32.0},
        counts={},
        scores=[row, nothing],
    )
    ledger = Ledger(
        role="judge", model="a/judge", calls=1, cached=0, failed=0, input_tokens=9, output_tokens=1, usd=None
    )
    return RunResult(
        run_id="contract",
        task="contract",
        task_version="1.0",
        spec_sha="0" * 64,
        saeval_version="0",
        seed=0,
        rank_by="detection.balanced_accuracy",
        partial=partial,
        synthetic=True,
        reproducible=True,
        cells=[cell],
        ledger=[ledger],
    )


async def _ask_everything(llm: LLM) -> None:
    try:
        asked = llm.complete(Request.of("What is the capital of France? Answer with one word.", max_tokens=8))
        reply = await _awaited("complete", asked, Reply)
        assert reply.text, "an empty answer is returned; raise LLMError"
        counts = (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cached_tokens, reply.usage.usd or 0)
        assert min(counts) >= 0, f"usage {reply.usage} is negative"
        request = LogprobRequest(prompts=(" one", " two"), continuations=(" three", " four", " five"), prefix="Zero")
        fill = FillRequest(texts=(("a", " b"), ("c",)), filler=" 0", choices=(" 0", " 1"), prefix="Zero")
        if not llm.can_score:
            for ask in (lambda: llm.logprobs(request), lambda: llm.fill(fill)):
                try:
                    await ask()
                except LLMError:
                    continue
                raise AssertionError("continuations are scored although `can_score` is False")
            return
        first, again = [(await llm.logprobs(request)).logprobs for _ in range(2)]
        assert [len(prompt) for prompt in first] == [3, 3], (
            "`logprobs` does not score every continuation of every prompt"
        )
        found = np.array([value for prompt in first for tokens in prompt for value in tokens])
        assert all(all(prompt) for prompt in first), "a continuation has no tokens"
        assert np.isfinite(found).all() and (found <= 1e-3).all(), "log-probabilities are above 0 or not finite"
        assert first == again, "the same continuations have other log-probabilities"
        gaps = (await llm.fill(fill)).logprobs
        assert [[len(gap) for gap in text] for text in gaps] == [[2, 2], [2]], (
            "`fill` does not weigh every choice in every gap"
        )
    finally:
        await llm.aclose()


def _check_plugin(plugin: AnyPlugin) -> None:
    """Check the contract of all kinds: a valid name, options that can be serialised, a JSON fingerprint."""
    kind = type(plugin)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.name), f"the name {kind.name!r} is not lower case with underscores"
    options = plugin.model_dump(mode="json")
    parts = {key: value for key, value in plugin if isinstance(value, Plugin)}  # created from `use:`, not from data
    again = kind.model_validate({**json.loads(json.dumps(options, allow_nan=False)), **parts})
    assert again == plugin, f"the options {options} change when written to JSON and read back"
    needs = plugin.needs()
    assert isinstance(needs, frozenset | set), f"needs() returns {type(needs).__name__}, not a frozenset"
    assert needs <= set(get_args(Need)), f"needs() returns {sorted(needs)}; possible are {', '.join(get_args(Need))}"
    assert json.dumps(again.fingerprint()) == json.dumps(plugin.fingerprint()), "equal options give another fingerprint"


def _check_cautions(said: object) -> None:
    sentences = isinstance(said, list | tuple) and all(isinstance(caution, str) for caution in said)
    assert sentences, f"cautions() returns {said!r}, not a list of sentences"


def _useless_models() -> dict[str, LanguageModel]:
    def raising(error: LLMError) -> ScriptedLLM:
        def fail(*_: Any) -> Any:
            raise error

        return ScriptedLLM(fail, fail)

    def unscored(*_: Any) -> Any:
        raise LLMError("this model cannot score")

    return {
        "garbage": ScriptedLLM("Lorem ipsum; 3 of [these] {are} not.\n```", unscored),
        "empty": ScriptedLLM("", unscored),
        "refused": raising(Refused("the model declined")),
        "failing": raising(LLMError("server error 500")),
    }


class _NoModel(LanguageModel):
    """What a step without a role gets in a run; counts requests, because a step may catch the error."""

    def __init__(self) -> None:
        self.requests = 0

    async def complete(self, request: Request) -> Reply:
        self.requests += 1
        raise LLMError("this step declares no llm_role, so it has no language model")

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        self.requests += 1
        return await super().logprobs(request)

    async def fill(self, request: FillRequest) -> FillReply:
        self.requests += 1
        return await super().fill(request)


@contextmanager
def _lent(step: Step, model: LanguageModel) -> Iterator[LanguageModel]:
    """Lend a model to a step for this context, as in a run: none to a step without a role, which must not ask one."""
    if step.llm_role is not None:
        yield model
        return
    none = _NoModel()
    yield none
    assert not none.requests, (
        "it asks a language model, but declares no `llm_role`, so it gets none in a run; set `llm_role` in its class"
    )


async def _awaited(method: str, answer: Awaitable[R], kind: type[R]) -> R:
    """Return what an async method returns, and refuse other types."""
    assert inspect.isawaitable(answer), f"`{method}` is not async; write `async def {method}`"
    result = await answer
    assert isinstance(result, kind), _wrong(method, result, kind)
    return result


async def _made(method: str, answer: Awaitable[S], kind: type[S]) -> S:
    """Return the result of a step; as in a run, it fails if the step raises that there is no answer."""
    try:
        return await _awaited(method, answer, kind)
    except (ParseError, LLMError) as error:
        return kind.failed(str(error))


def _wrong(method: str, result: object, kind: type) -> str:
    return f"`{method}` returned {type(result).__name__} instead of {kind.__name__}"


def _check_score(scorer: Scorer, score: Score, examples: Examples) -> None:
    declared = {metric.name: metric for metric in scorer.metrics}
    assert Score.model_validate_json(score.model_dump_json()) == score, "the score is not JSON"
    assert score.values.keys() <= declared.keys(), (
        f"metrics {sorted(score.values.keys() - declared.keys())} not declared"
    )
    for name, value in score.values.items():
        low, high = declared[name].low, declared[name].high
        assert low <= value <= high, f"{name} = {value} lies outside {low} to {high}"
    if score.status == "ok":
        assert scorer.metrics[0].name in score.values, f"the headline metric {scorer.metrics[0].name} is missing"
    else:
        assert score.reason and not score.values, (
            f"status {score.status} with values {score.values}, reason {score.reason!r}"
        )
    decoys = examples.decoy.activating if examples.decoy else ()
    windows = {e.id: e for e in (*examples.activating, *examples.non_activating, *decoys)}
    for outcome in score.outcomes:
        given = outcome.example in windows or outcome.written is not None
        assert given, f"the judged window {outcome.example} is not in the examples"
        assert outcome.status == "ok" or (outcome.reason and outcome.predicted is None), (
            f"{outcome.status} with an answer"
        )


def _unusual_outcomes(scorer: Scorer, score: Score, examples: Examples) -> Iterator[str]:
    """Yield a sentence for each way in which a scorer that classifies windows does not return one outcome for each.

    Scorers with another headline metric, such as `intruder`, draw windows, or ask about several at once.
    """
    outcomes = [outcome for outcome in score.outcomes if outcome.written is None]
    classifies = scorer.metrics[0].name in _OF_CLASSIFIERS
    if score.status != "ok" or not outcomes or not classifies:
        return
    fires = {window.id: window.active for window in (*examples.activating, *examples.non_activating)}
    replaced = examples.non_activating if "decoy" in scorer.needs() else ()  # by those of the other latent
    expected = fires.keys() - {window.id for window in replaced}
    times = Counter((outcome.example, outcome.active) for outcome in outcomes)
    judged = {outcome.example for outcome in outcomes}
    if missing := [window for window in fires if window in expected - judged]:
        yield (
            f"{len(missing)} of {counted(len(expected), 'window')} have no outcome, such as {missing[0]}, so coverage "
            "does not count them; unless the scorer draws windows, return one with a `status` and a `reason` where "
            "there is no answer"
        )
    if repeated := [window for (window, _), n in times.items() if n > 1]:
        yield (
            f"{counted(len(repeated), 'window')} of {len(fires)} have several outcomes with the same `active`, such as "
            f"{repeated[0]}; each counts as a window of its own, so intervals are too narrow"
        )
    if contradicted := [window for window, active in times if fires.get(window, active) != active]:
        yield (
            f"`active` contradicts {counted(len(contradicted), 'window')} of {len(fires)}, such as {contradicted[0]}; "
            "it is the truth (`window.active`, unless the question is another one), and not the answer"
        )


def _check_record(record: LatentRecord, sampler: Sampler, store: ActivationStore) -> None:
    sides = [(*s.activating, *s.non_activating) for s in (record.explain, record.score)]
    documents = [{e.document for e in side} for side in sides]
    assert "leak" in record.flaws or not documents[0] & documents[1], "a document is in both explain and score"
    assert record.explain.activating and record.score.activating and record.score.non_activating, "a set is empty"
    position, value = store.activations(record.latent.index)
    for side in sides:
        assert len({e.id for e in side}) == len(side), "a window is shown twice"
        for example in side:
            assert len(example.tokens) == sampler.window, f"a window of {len(example.tokens)} tokens"
            at = example.context * store.length + example.start
            truth = np.zeros(sampler.window, dtype=np.float32)
            here = (position >= at) & (position < at + sampler.window)
            truth[position[here] - at] = value[here]
            assert np.array_equal(truth, example.activations), f"window {example.id}: not the store's activations"
            unseen = "unverified" in record.flaws and not example.active
            assert unseen or example.active == bool(truth.any()), f"window {example.id}: `active` is wrong"
    deciles = [e.decile for e in record.score.activating]
    assert all(d is not None and 0 <= d < 10 for d in deciles), "a scored activating window has no decile"
    assert record.firings == len(position), f"{record.firings} firings instead of {len(position)}"


def _awkward_store(path: Path) -> tuple[ActivationStore, dict[int, str]]:
    """Create a store with three planted latents and three that cannot be sampled; return it with the reasons."""
    dataset, planted = planted_tokens(3, 60, seed=0)
    writer = ActivationWriter(path)
    writer.start(dataset, 6)
    for row, latent in enumerate(planted):
        offset = [int(o) for o in np.flatnonzero(dataset.mask[row])]
        here = [(o, int(latent[o])) for o in offset if latent[o] >= 0]
        here += [(o, 3) for o in offset]
        if row == 0:
            here += [(offset[0], 4)]
        here.sort()
        at = np.array([o for o, _ in here], dtype=np.int64)
        which = np.array([i for _, i in here], dtype=np.int64)
        writer.add(row * dataset.tokens.shape[1] + at, which, (1 + at % 7).astype(np.float32))
        writer.advance(row + 1)
    return writer.finish(), {3: "fires on every token", 4: "fires once", 5: "never fires"}


def _content(record: LatentRecord | None) -> object:
    if record is None:
        return None
    return [
        (e.id, e.decile, e.tokens, e.activations.tolist())
        for side in (record.explain, record.score)
        for e in (*side.activating, *side.non_activating)
    ]


@contextmanager
def _untouched(examples: Examples) -> Iterator[None]:
    """Within this context, check that the arrays of the examples (their only mutable part) do not change."""
    windows = (*examples.activating, *examples.non_activating)
    before = [e.activations.copy() for e in windows]
    yield
    assert all(np.array_equal(a, e.activations) for a, e in zip(before, windows, strict=True)), "examples are changed"
