"""Any causal language model of transformers is read, steered and looked into rightly, or refused in a sentence."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import yaml
from fake_server import fake_server
from plain_passes import brute_force
from planted_run import truthful
from root import ROOT
from tiny import CONFIGS, tiny_model

import saeval
from saeval import InputError
from saeval.plugin import HookPoint, LinearCoder, LiveModel, Subject, down_projection

PAGE = ROOT / "docs" / "subjects.md"
TOKENS = torch.arange(3, 3 + 2 * 12).reshape(2, 12)
FAST = ("mamba", "rwkv", "recurrent_gemma", "jamba", "bamba", "gemma2", "olmo2", "mixtral", "gemma3")
KINDS = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in CONFIGS]
APART = {"gemma3n_text": "layers.1 does not give one activation per token"}
"""Families whose blocks cannot be read, and what is said of them."""
DO_MORE = ("gemma4_text", "falcon_h1", "minimax")
"""Families whose blocks do more than add attention and MLP to the residual stream."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    transformers = pytest.importorskip("transformers")
    if request.param not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def live(kind, tmp_path_factory):
    return LiveModel.load(str(tiny_model(tmp_path_factory.mktemp(kind), kind)))


@pytest.fixture
def readable(kind, live):
    """The model, of the families whose blocks can be read; of the others, see that they say so."""
    if kind in APART:
        with pytest.raises(InputError, match=APART[kind]):
            live.capture(TOKENS, [live.hookpoint(live.blocks()[1])])
        pytest.skip("its blocks cannot be read, and it says so")
    return live


def logits_of(live, tokens=TOKENS):
    with torch.inference_mode():
        return live.model(tokens, use_cache=False).logits


def direction_of(live, point, seed=0):
    return torch.randn(live.width(point), generator=torch.Generator().manual_seed(seed))


def neurons_of(live):
    """Return the places of neurons by block; None where it has none."""
    return [down_projection(block, live.modules()) for block in live.blocks()]


def lens_of(live):
    try:
        return live._final_norm
    except InputError as error:
        assert "no known final norm" in str(error) or "does not support" in str(error)
        return None


def test_blocks_are_all_there_and_read_as_a_plain_hook_sees_them(readable):
    live = readable
    blocks = live.blocks()
    assert len(blocks) == live.model.config.get_text_config().num_hidden_layers
    seen = []
    handles = [
        live.module(block).register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out.clone()))
        for block in blocks
    ]  # fmt: skip
    logits_of(live)
    for handle in handles:
        handle.remove()
    points = [live.hookpoint(block) for block in blocks]
    caught = live.capture(TOKENS, points)
    assert all(torch.equal(caught[point], expected) for point, expected in zip(points, seen, strict=True))
    for name, place in (("hook_resid_post", HookPoint(blocks[1])), ("hook_resid_pre", HookPoint(blocks[1], "in"))):
        assert live.hookpoint(f"blocks.1.{name}") == place
    assert torch.equal(live.capture(TOKENS, [HookPoint(blocks[1], "in")])[HookPoint(blocks[1], "in")], seen[0])

    weights = torch.randn(seen[1].shape[-1], 5, generator=torch.Generator().manual_seed(0))
    rows, latents, values = LinearCoder(weights, weights.T.contiguous()).encode(caught[points[1]].flatten(0, 1))
    dense = torch.zeros(TOKENS.numel(), 5).index_put((rows, latents), values)
    assert torch.equal(dense, (seen[1].flatten(0, 1) @ weights).relu()) and dense.any()


def test_padding_on_the_right_reaches_no_real_token(readable):
    live = readable
    point = live.hookpoint(live.blocks()[-1])
    padded = TOKENS.clone()
    padded[0, 7:] = 2
    caught = live.capture(padded, [point], lengths=torch.tensor([7, 12]))[point]
    assert torch.allclose(caught[0, :7], live.capture(TOKENS[:1, :7], [point])[point][0], atol=1e-4)


@pytest.mark.parametrize("site", ["in", "out"])
def test_steering_adds_the_direction_from_a_token_on(readable, site):
    live = readable
    point = HookPoint(live.blocks()[1], site)
    direction = direction_of(live, point)
    clean = live.capture(TOKENS, [point])[point]
    for first in (0, 5):
        with live.steer(point, direction, 3.0, first=first):
            steered = live.capture(TOKENS, [point])[point]
        assert torch.allclose(steered[:, first:], clean[:, first:] + 3 * direction, atol=1e-4)
        assert torch.equal(steered[:, :first], clean[:, :first])
    assert torch.equal(live.capture(TOKENS, [point])[point], clean)


def test_steering_is_the_same_cached_uncached_and_one_row_at_a_time_by_hand(readable):
    live = readable
    subject = Subject(live, live.hookpoint(live.blocks()[1]))
    direction = direction_of(live, subject.point)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 299, (4, 9), generator=generator).tolist()

    def by_hand(tokens, factor=3.0):
        return brute_force(live.model, subject.point.path, tokens, direction, factor, 8)

    expected = torch.stack([by_hand(row) for row in prompts])
    clean = torch.stack([by_hand(row, 0.0) for row in prompts])
    assert float((clean - expected).abs().max()) > 1e-2
    texts = []
    for row in prompts:
        tokens = list(row)
        while len(tokens) < 13 and (chosen := int(by_hand(tokens).argmax())) not in live.ends():
            tokens.append(chosen)
        texts.append(tokens[9:])
    for cached in (True, False):
        steered = subject.steered(prompts, direction, cached=cached)
        for _ in range(2):  # what is remembered is branched from, not written to
            assert torch.allclose(steered.next_logprobs(3.0), expected, atol=1e-4)
        assert torch.allclose(steered.clean, clean, atol=1e-4)
        assert steered.generate(3.0, 4, np.random.default_rng(0), temperature=0) == texts


def test_lens_gives_the_models_logits_or_says_that_it_cannot(readable):
    live = readable
    norm = lens_of(live)
    point = live.hookpoint(live.blocks()[-1])
    direction = direction_of(live, point)
    if norm is None:
        with pytest.raises(InputError, match="no known final norm|does not support"):
            Subject(live, point).promoted(direction)
        return
    with torch.inference_mode():
        made = live.unembed(norm(live.capture(TOKENS, [point])[point]))
    assert torch.allclose(made, logits_of(live), atol=1e-4)
    promoted = Subject(live, point).promoted(direction)
    assert promoted.shape == (live.model.get_output_embeddings().weight.shape[0],) and float(promoted.std()) > 0


@pytest.mark.slow
def test_half_precision_changes_no_more_than_rounding(kind, readable):
    if kind == "xlstm":
        pytest.skip("transformers' own forward pass of it takes float32 only")
    half = LiveModel.load(readable.name, dtype="bfloat16")
    assert half._memory_name == readable._memory_name
    subject = Subject(half, half.hookpoint(half.blocks()[1]))
    direction = direction_of(half, subject.point)
    prompts = [[0, 5, 6, 7], [0, 9, 8, 7]]
    cached, uncached = (subject.steered(prompts, direction, cached=c).next_logprobs(3.0) for c in (True, False))
    assert torch.allclose(cached, uncached, atol=0.1)
    expected = Subject(readable, subject.point).promoted(direction)
    assert torch.corrcoef(torch.stack([subject.promoted(direction), expected]))[0, 1] > 0.99


def test_neurons_write_what_the_down_projection_gives_or_are_refused(readable):
    live = readable
    places = {place for place in neurons_of(live) if place is not None}
    for place in places:
        into, out = HookPoint(place, "in"), HookPoint(place)
        caught = live.capture(TOKENS, [into, out])
        module = live.module(place)
        zero = module(torch.zeros(caught[into].shape[-1]))
        axes = torch.stack([module(axis) - zero for axis in torch.eye(caught[into].shape[-1])])
        assert torch.allclose(caught[into] @ axes + zero, caught[out], atol=1e-4)
    experts = [
        any(m.startswith(f"{block}.") and m.endswith(".experts") for m in live.modules()) for block in live.blocks()
    ]
    assert all(place is None for place, mixed in zip(neurons_of(live), experts, strict=True) if mixed)


def test_transformer_lens_names_add_up_to_the_residual_stream_or_are_refused(readable):
    live = readable
    caught = {}
    for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
        try:
            point = live.hookpoint(f"blocks.1.hook_{name}")
        except InputError as error:
            assert "no hookpoint that matches" in str(error)
        else:
            caught[name] = live.capture(TOKENS, [point])[point]
    if live.model.config.model_type in DO_MORE:
        return
    scale = getattr(live.model.config, "residual_multiplier", 1.0)
    pre, post = caught["resid_pre"], caught["resid_post"]
    attention, middle, mlp = (caught.get(name) for name in ("attn_out", "resid_mid", "mlp_out"))
    if middle is not None and attention is not None:
        assert torch.allclose(pre + scale * attention, middle, atol=1e-4)
    if middle is not None and mlp is not None:
        assert torch.allclose(middle + scale * mlp, post, atol=1e-4)
    if middle is None and attention is not None and mlp is not None:
        assert torch.allclose(pre + scale * (attention + mlp), post, atol=1e-4)


def test_page_of_subjects_says_what_is_so(kind, live):
    (row,) = re.findall(rf"^\| `{kind}` \|.*$", PAGE.read_text(), re.MULTILINE)
    assert row == page_row(kind, live)


def page_row(kind, live):
    """Return a family's row of the page of subjects."""
    blocks = live.blocks()
    if kind in APART:
        return f"| `{kind}` | `{blocks[0][:-2]}` | cannot be read | – | – |"
    short = {place.removeprefix(f"{block}.") for block, place in zip(blocks, neurons_of(live), strict=True) if place}
    neurons = ", ".join(f"`{name}`" for name in sorted(short)) or "–"
    every = "" if not short or all(neurons_of(live)) else " (some blocks)"
    lens, memory = ("–" if found is None else "yes" for found in (lens_of(live), live._memory_name))
    return f"| `{kind}` | `{blocks[0][:-2]}` | {neurons}{every} | {lens} | {memory} |"


def test_page_of_subjects_lists_no_other_family():
    assert re.findall(r"^\| `(\w+)` \| `[\w.]+` \|", PAGE.read_text(), re.MULTILINE) == list(CONFIGS)


# --- places that hold all tokens in one row


class Flattened(torch.nn.Module):
    """A module that sees its tokens in one row, as mixtures of experts do."""

    def __init__(self, inner):
        super().__init__()
        self.flat, self.inner = torch.nn.Identity(), inner

    def forward(self, x):
        return self.inner(self.flat(x.reshape(-1, x.shape[-1])).view(x.shape))


def test_places_with_all_tokens_in_one_row_are_steered_from_a_token_on(tmp_path):
    live = LiveModel("flat", (loaded := LiveModel.load(str(tiny_model(tmp_path)))).model, loaded.tokenizer)
    block = live.module("layers.1")
    inner = live.hookpoint("layers.1.mlp.input")
    direction = direction_of(live, inner)
    prompts = [[0, *range(5 + i, 12 + i)] for i in range(3)]
    expected = Subject(live, inner).steered(prompts, direction).next_logprobs(2.0)
    block.mlp = Flattened(block.mlp)
    flat = LiveModel("flat", live.model, live.tokenizer)
    subject = Subject(flat, flat.hookpoint("layers.1.mlp.flat"))
    for cached in (True, False):
        assert torch.allclose(
            subject.steered(prompts, direction, cached=cached).next_logprobs(2.0), expected, atol=1e-5
        )
    with (
        pytest.raises(InputError, match="rotary_emb does not give one activation per token"),
        flat.steer(HookPoint("rotary_emb"), direction, 1.0),
    ):
        logits_of(flat)


# --- the page, and the tasks for recurrent networks


def test_code_of_the_page_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(code.replace("state-spaces/mamba-130m-hf", str(tiny_model(tmp_path, "mamba"))), names)
    assert names["strength"].kl == pytest.approx(0.005, rel=0.1) and names["words"]


def reply(messages):
    """Judge as a scripted judge does, and explain everything alike."""
    return truthful(messages) if messages[-1]["content"].startswith("Explanation:") else "EXPLANATION: ships at sea"


CELLS = {"rnn/steering": ["tense", "random_sae"], "rnn/lens": ["mamba"], "rnn/probes": ["mamba"]}


@pytest.mark.slow
@pytest.mark.parametrize("task", CELLS)
def test_tasks_for_recurrent_networks_run_to_their_end(task, tmp_path, monkeypatch):
    model = tiny_model(tmp_path / "model", "mamba", seed=1)
    (tmp_path / "lens").mkdir()
    torch.save({"2.weight": torch.eye(16), "2.bias": torch.zeros(16)}, tmp_path / "lens" / "params.pt")
    changes = {
        "matrix.subject": f"[{{id: mamba, model: {model}, at: layers.1}}]",
        "latents": "{n: 2, min_windows: 20}",
        "sampler.with": "{window: 8, explain: 8, score: 8, non_activating: {n: 8}}",
        "source.with.corpus.per_document": 200,
    }
    if task == "rnn/steering":
        pairs = PAGE.parents[1] / "tasks" / "rnn" / "tense.jsonl"
        changes |= {"matrix.concept": f"[{{id: tense, pairs: {pairs}}}]", "scorers.intervention_weak.with.kl": 0.01}
        changes |= {"explainer.with.kl": 0.02}
    if task == "rnn/lens":
        changes |= {"source.with.coder.with.k": 4, "explainer.with.tuned_lens": tmp_path / "lens"}
    if task != "rnn/probes":
        changes |= {"scorers.intervention.with.kl": 0.02, "llms.base": f"{{model: 'hf/{model}'}}"}
    with fake_server(reply) as server:
        chat = f"{{model: openai_compatible/x, api_base: '{server.url}', max_tokens: 100}}"
        changes |= {"llms.explainer": chat} | ({} if task == "rnn/steering" else {"llms.judge": chat})
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
        saeval.run(task, out=tmp_path / "run", overrides={key: yaml.safe_load(str(v)) for key, v in changes.items()})
    cells = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert [cell["cell"].rpartition("=")[2] for cell in cells] == CELLS[task]
    rows = [row for cell in cells for row in cell["scores"]]
    assert rows and all(row["n"] == row["tried"] > 0 and row["value"] is not None for row in rows)
