"""What a lens says a direction promotes is what adding it does to the logits, in every family and at every place."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from scipy.stats import spearmanr
from tiny import CONFIGS, tiny_model

from saeval import InputError
from saeval.plugin import HookPoint, LiveModel, Subject, down_projection

TOKENS = torch.randint(3, 290, (8, 12), generator=torch.Generator().manual_seed(1))
FAST = ("gemma2", "olmo2", "rwkv", "mamba", "gpt2", "gpt_neox", "recurrent_gemma")
KINDS = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in CONFIGS]


def uneven(folder, kind):
    """Give norms gains, and RWKV's receptance weights, that differ as those of trained models do."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if name.endswith("receptance"):
                weight.mul_(8)
            if "norm" in type(module).__name__.lower() and weight is not None and weight.ndim == 1:
                gains = torch.exp(0.7 * torch.randn(weight.shape, generator=generator))
                from_one = kind.startswith(("gemma", "recurrent_gemma")) and not kind.startswith(("gemma3n", "gemma4"))
                weight.copy_((1 + weight) * gains - 1 if from_one else weight * gains)
    model.save_pretrained(folder)
    return folder


def true_change(live, point, direction):
    """Mean change of the last token's logits when a little of a direction is added at that token.  [vocabulary]"""
    step = 1e-2 * live.capture(TOKENS, [point])[point].norm(dim=-1).mean() / direction.norm()

    def logits(strength):
        with torch.inference_mode(), live.steer(point, direction, strength, first=TOKENS.shape[1] - 1):
            return live.model(TOKENS, use_cache=False).logits[:, -1].float()

    return ((logits(step) - logits(-step)) / (2 * step)).mean(dim=0).cpu().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_promoted_tokens_are_those_whose_logits_rise_where_gains_and_gates_differ(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {kind}")
    live = LiveModel.load(str(uneven(tiny_model(tmp_path / kind, kind), kind)))
    block = live.blocks()[-1]
    neurons = down_projection(block, live.modules())
    places = {"block": HookPoint(block)} | ({"neurons": HookPoint(neurons, "in")} if neurons else {})
    if (
        mlp := next((f"{block}.{m}" for m in ("mlp", "feed_forward") if f"{block}.{m}" in live.modules()), None)
    ) is not None:
        places["mlp"] = HookPoint(mlp)
    for name, point in places.items():
        subject, found = Subject(live, point), []
        try:
            for seed in range(5):
                direction = torch.randn(live.width(point), generator=torch.Generator().manual_seed(seed))
                promoted = subject.promoted(direction).numpy()
                found.append(float(spearmanr(promoted, true_change(live, point, direction))[0]))
        except InputError as error:
            assert any(
                said in str(error) for said in ("a logit lens cannot", "does not support", "one activation per token")
            ), error
            assert name != "block" or kind == "gemma3n_text", error  # whose stream is four
            continue
        assert median(found) > 0.85, (name, found)


@pytest.mark.parametrize(("kind", "place"), [("llama", "layers.2.mlp.input"), ("llama", "layers.2.input_layernorm")])
def test_places_that_write_into_the_stream_by_way_of_the_text_have_no_lens(tmp_path, kind, place):
    live = LiveModel.load(str(tiny_model(tmp_path / kind, kind)))
    with pytest.raises(InputError, match="depends on the text, so a logit lens cannot be applied"):
        Subject(live, live.hookpoint(place)).promoted(torch.ones(16))


def test_several_directions_are_read_as_each_by_itself_where_a_gate_is_measured(tmp_path):
    live = LiveModel.load(str(uneven(tiny_model(tmp_path / "rwkv", "rwkv"), "rwkv")))
    subject = Subject(live, HookPoint(down_projection(live.blocks()[-1], live.modules()), "in"))
    directions = torch.randn(3, subject.width, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([subject.promoted(direction) for direction in directions])
    together = subject.promoted(directions)
    assert [float(spearmanr(a, b)[0]) > 0.999 for a, b in zip(alone, together, strict=True)] == [True] * 3
