"""Screening in bfloat16 or TF32 misses no firing, adds none, and computes few latents twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saeval.models import coders, screened
from saeval.models.coders import GatedEncoder, LinearCoder
from saeval.models.screening import Screen

D, LATENTS, ROWS = 256, 2048, 48
KINDS = {
    "jumprelu": {"threshold": 0.3},
    "relu": {},
    "topk": {"k": 16},
    "batch_topk at its threshold": {"threshold": 0.3, "subtract_decoder_bias": True},
    "topk by decoder norm": {"k": 16, "scale_by_decoder_norm": True},
    "normalised": {"threshold": 3.0, "normalize": "constant_norm_rescale"},
}


def coder(kind, seed, *, dyadic):
    """A sparse coder; `dyadic`: its numbers and all sums are exact in float32, though not in bfloat16."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.randn(*shape, generator=g)
        return (x * 256).round() / 256 if dyadic else x / shape[0] ** 0.5

    options = dict(KINDS[kind])
    encoder = draw(D, LATENTS)
    deviations = 3.0 if dyadic else 8.0  # of which outliers in the stream make more than two and a half
    spread = float(encoder.norm(dim=0).mean())
    if "threshold" in options:
        level = options["threshold"] if "normalize" in options else deviations
        scale = spread if not dyadic else float(round(spread))
        options["threshold"] = torch.full((LATENTS,), level * scale)
    bias = draw(LATENTS) * (0.125 if dyadic else 0.1) - (
        0 if "k" in options or "threshold" in options else deviations * spread
    )
    if dyadic:
        bias = (bias * 256).round() / 256
    made = LinearCoder(encoder, encoder.T.contiguous(), bias, draw(D) if dyadic else 0.1 * draw(D), **options)
    x = draw(ROWS, D) * (1 if dyadic else ROWS**0.5)
    if not dyadic:
        x[:, :3] *= 20  # as in the streams of real models
    return made, x


def found(sparse):
    order = (sparse.rows * LATENTS + sparse.latents).argsort()
    return [part[order] for part in sparse]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("normalised", "topk by decoder norm")])
def test_screened_activations_are_bit_identical_where_sums_are_exact(kind, precision):
    made, x = coder(kind, 0, dyadic=True)
    plain = found(made.encode(x))
    with screened(precision):
        mine = found(replace(made).encode(x))
    assert len(plain[0]) > 50
    for one, other in zip(plain, mine, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "precision"), [*((seed, "bf16") for seed in range(4)), (0, "tf32")])
def test_no_firing_is_missed_and_none_added(kind, seed, precision, monkeypatch):
    made, x = coder(kind, seed, dyadic=False)
    exact, computed = Screen.exact, []

    def counted(self, x, rows, latents):
        computed.append(len(rows))
        return exact(self, x, rows, latents)

    monkeypatch.setattr(Screen, "exact", counted)
    rows, latents, values = found(made.encode(x))
    with screened(precision):
        own_rows, own_latents, own = found(made.encode(x))
    fired = dict(zip(zip(rows.tolist(), latents.tolist(), strict=True), values.tolist(), strict=True))
    mine = dict(zip(zip(own_rows.tolist(), own_latents.tolist(), strict=True), own.tolist(), strict=True))
    assert fired and mine.keys() == fired.keys()
    assert all(mine[key] == pytest.approx(fired[key], rel=1e-3, abs=1e-4) for key in fired)
    assert computed and sum(computed) < (3 if precision == "bf16" else 1.2) * len(fired)


def test_encoders_in_tf32_have_ten_bits_and_lose_a_two_thousandth_at_most():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x[0, :3] = torch.tensor([torch.inf, -torch.inf, 1 - 2.0**-24])
    screen = Screen(x, "tf32")
    assert not (screen._low.view(torch.int32) & 0x1FFF).any()
    assert screen._low[0, :3].tolist() == [torch.inf, -torch.inf, 1.0]
    lost = (screen._low - x)[1:].abs() / x[1:].abs()
    assert 2.0**-12 < float(lost.max()) <= 2.0**-11
    assert float(Screen(x[1:]).norms.sub(Screen(x[1:], "tf32").norms).abs().max()) == 0


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_firing_at_the_edge_of_its_threshold_is_never_missed(precision):
    """Thresholds just below and just above what each latent gives: bfloat16 alone gets half of them wrong."""
    made, x = coder("jumprelu", 0, dyadic=True)
    pre = x[0] @ made.encoder + made.encoder_bias
    strong = pre > 2 * made.encoder.norm(dim=0).mean()
    step = 1 / (1 << 16)
    for away, expected in ((-step, True), (0.0, False), (step, False)):
        edge = replace(made, threshold=torch.where(strong, pre + away, 1e9))
        with screened(precision):
            fires = torch.zeros(LATENTS, dtype=torch.bool).index_fill(0, edge.encode(x[:1]).latents, True)
        assert bool((fires[strong] == expected).all()) and int(strong.sum()) > 20


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_dense_coders_and_nan_are_encoded_without(kind, monkeypatch):
    made, x = coder(kind, 0, dyadic=False)
    monkeypatch.setattr(coders, "_MOST_CANDIDATES", 1 / LATENTS)
    plain = made.encode(x)
    with screened():
        for one, other in zip(found(plain), found(made.encode(x)), strict=True):
            assert torch.equal(one, other)
        monkeypatch.undo()
        x[3, 5] = torch.nan
        assert made.encode(x).values.isnan().any()
    x[3, 5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # as GPUs write NaN
    with screened("tf32"):
        assert made.encode(x).values.isnan().any()


def test_gated_coders_are_not_screened():
    made, x = coder("relu", 0, dyadic=False)
    gated = replace(made, gate=GatedEncoder(*(torch.zeros(LATENTS) for _ in range(3))))
    plain = gated.encode(x)
    with screened():
        assert torch.equal(gated.encode(x).values, plain.values) and gated._screen is None
