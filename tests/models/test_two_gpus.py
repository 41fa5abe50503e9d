"""`device: balanced`: a model spread over two GPUs gives the numbers that it gives on one device."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from saeval_plugins.llms import HF
from tiny import CONFIGS, SIZES, D, tiny_tokenizer
from two_gpus import FIRST, SECOND, MixedDevices, Placed, spread, two_gpus

from saeval.models.fidelity import measure_fidelity
from saeval.plugin import FillRequest, LinearCoder, LiveModel, LogprobRequest, Message, Request, Subject

TOKENS = torch.tensor([[5, 9, 31, 77, 8, 120], [6, 6, 40, 2, 2, 2]])


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def models(request):
    """The same model on one device, and on two: untied (Llama), and with tied weights (Gemma 2)."""
    pytest.importorskip("accelerate")
    torch.set_num_threads(1)
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(request.param, **{**SIZES, **CONFIGS[request.param]})
    whole = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weights in whole.parameters():
        weights.add_(0.1 * torch.randn_like(weights))
    apart, tied = copy.deepcopy(whole), config.tie_word_embeddings
    assert tied == (request.param == "gemma2")
    with two_gpus():
        spread(
            apart,
            {
                "model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST, "model.layers.1": SECOND,
                "model.layers.2": SECOND, "model.norm": SECOND, "lm_head": FIRST if tied else SECOND,
            },
        )  # fmt: skip
        if tied:
            apart.lm_head.weight = apart.model.embed_tokens.weight
        spread_out = LiveModel("tiny", apart, tiny_tokenizer())
        assert spread_out.device == FIRST
    return LiveModel("tiny", whole, tiny_tokenizer()), spread_out


def both(models, do):
    """Return what is computed on one device, and on two."""
    found = []
    for live, place in zip(models, (nullcontext, two_gpus), strict=True):
        with place():
            made = do(live)
            found.append(made.inside if isinstance(made, Placed) else made)
    return found


def scored(live, work, request):
    llm = HF(model="tiny")
    llm.__dict__["_live"] = live
    return llm._locked(getattr(llm, work), request)


CODER = LinearCoder(torch.cat([torch.eye(D), -torch.eye(D)]).T, 0.9 * torch.cat([torch.eye(D), -torch.eye(D)]))
CORPUS = SimpleNamespace(
    tokens=TOKENS.numpy().astype(np.int32), lengths=np.array([6, 3]), length=6, lead=1,
    mask=np.array([[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]], dtype=bool),
)  # fmt: skip
ASKED = ("the deck", "In the year 1851"), (" at home", " s")


def test_tensors_of_two_gpus_are_not_mixed():
    with two_gpus():
        first, second = torch.ones(2, device=FIRST), torch.ones(2).to(SECOND)
        with pytest.raises(MixedDevices):
            first + second
        with pytest.raises(MixedDevices):
            first[torch.zeros(1, dtype=torch.int64, device=SECOND)]
        assert (first + second.to(first))[torch.zeros(1, dtype=torch.int64)].tolist() == [2.0]


@pytest.mark.parametrize(
    "do",
    [
        lambda live: live.capture(TOKENS, [live.hookpoint("layers.1")])[live.hookpoint("layers.1")],
        lambda live: Subject(live, live.hookpoint("layers.0")).promoted(torch.eye(D)[:3]),
        lambda live: Subject(live, live.hookpoint("layers.1.mlp.down_proj.input")).promoted(torch.eye(24)[:3]),
        lambda live: torch.tensor(measure_fidelity(Subject(live, live.hookpoint("layers.1")), CODER, CORPUS)),
        lambda live: live.next_logprobs(TOKENS, torch.tensor([6, 3])),
        lambda live: torch.tensor(scored(live, "_logprobs", LogprobRequest(ASKED[0], (" s", " a"), "Nobody")).logprobs),
        lambda live: torch.tensor(scored(live, "_logprobs", LogprobRequest(ASKED[0], (" s", " a", " h"))).logprobs),
        lambda live: torch.tensor(
            [v for row in scored(live, "_logprobs", LogprobRequest(*ASKED, "Nobody")).logprobs for c in row for v in c]
        ),
        lambda live: torch.tensor(scored(live, "_fill", FillRequest((("the ", " o"),), "s", ("s", "a"), "A")).logprobs),
        lambda live: scored(live, "_complete", Request((Message("user", "a ship"),), max_tokens=4)).text,
        lambda live: (
            Subject(live, live.hookpoint("layers.1")).steered([[5, 9, 31], [6, 7, 8]], torch.ones(D)).divergence(2.0)
        ),
    ],
    ids=[
        "activations", "lens", "lens_of_neurons", "ce_recovered", "next_token", "logprobs_behind_a_prefix",
        "logprobs_of_single_tokens", "logprobs", "choices", "answer", "steering",
    ],
)  # fmt: skip
def test_model_on_two_gpus_gives_what_it_gives_on_one_device(models, do):
    one, two = both(models, do)
    if isinstance(one, str):
        assert one == two
    else:
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
