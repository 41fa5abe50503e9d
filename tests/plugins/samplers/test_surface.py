"""What windows look like does not tell which activate: latents that fire at random places of recurring text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from saeval_plugins.samplers import DelphiSampler, RandomSampler, SAEBench
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from small_stores import write

from saeval.plugin import LatentId, TokenDataset, derive_rng
from saeval.records import Example

WORDS, HEADER, FOOTER = range(1, 21), range(21, 61), range(61, 73)
LATENTS = 32
OPTIONS = {"explain": 10, "score": 60}
SILENT = {"leak": False, "non_activating": 60}


def corpus() -> TokenDataset:
    """Documents of three lengths, one per context, that all begin with one text and end with another."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([80, 110, 200], size=500).astype(np.int32)
    tokens = rng.choice(WORDS, size=(500, 200)).astype(np.int32)
    tokens[:, 1:41] = HEADER
    for row, length in zip(tokens, lengths, strict=True):
        row[length - len(FOOTER) : length] = FOOTER
    tokens[:, 0] = 0
    place = np.arange(200)
    names = tuple(map(str, range(500)))
    pieces = {i: f" w{i}".encode() for i in range(1, 73)}
    mask = (place > 0) & (place < lengths[:, None])
    return TokenDataset(tokens, lengths, mask, np.arange(500, dtype=np.int32), names, {0: b"", **pieces}, lead=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Latents fire on single tokens, pairs, or runs with a weak end, rarely or often."""
    data, rng = corpus(), np.random.default_rng(1)
    activations = np.zeros((*data.tokens.shape, LATENTS), dtype=np.float32)
    for latent in range(LATENTS):
        rate, after = [0.004, 0.01, 0.03][latent % 3], latent % 4
        strength = np.where(rng.random(data.tokens.shape) < rate, rng.gamma(2.0, size=data.tokens.shape) + 0.2, 0)
        for shift in range(after + 1):
            activations[..., latent] = np.maximum(
                activations[..., latent], np.roll(strength, shift, axis=1) / (1 + shift)
            )
    activations *= data.mask[..., None]
    return write(tmp_path_factory.mktemp("surface") / "store", data, activations, budget=10**7)


@pytest.fixture(scope="module")
def run_store(tmp_path_factory):
    """Latents fire in runs of 16 or 40 tokens, where every 32nd token of a document is the same."""
    data, rng = corpus(), np.random.default_rng(1)
    data.tokens[:, 1:] = rng.choice(WORDS, size=(500, 199))
    data.tokens[:, 1::32] = HEADER[0]
    data.lengths[:] = 161
    data.mask[:, 1:] = np.arange(1, 200) < 161
    activations = np.zeros((*data.tokens.shape, LATENTS), dtype=np.float32)
    for latent in range(LATENTS):
        run = [16, 40][latent % 2]
        begins = rng.random((500, 200 + run)) < [0.001, 0.002, 0.006][latent % 3]
        for shift in range(run):
            activations[..., latent] += begins[:, shift : shift + 200]
    activations *= data.mask[..., None]
    return write(tmp_path_factory.mktemp("surface") / "runs", data, activations, budget=10**7)


def features(prompt: list[Example]) -> Iterator[np.ndarray]:
    """Yield what a judge sees of each window: its first, last and other words, and what it shares with the others."""
    ids = [window.token_ids for window in prompt]
    pairs = [{*zip(row, row[1:], row[2:], strict=False)} for row in np.array(ids).tolist()]
    for i, row in enumerate(ids):
        others = [j for j in range(len(prompt)) if j != i]
        shared = [len(pairs[i] & pairs[j]) for j in others]
        same = [float(row[end] == ids[j][end]) for end in (0, -1) for j in others]
        words = [np.bincount(row[part], minlength=73) for part in (slice(1), slice(-1, None), slice(None))]
        yield np.concatenate([*words, [i, max(shared), sum(shared), *map(sum, np.split(np.array(same), 2))]])


@pytest.mark.parametrize(
    "sampler",
    [
        *(
            RandomSampler(**OPTIONS, non_activating={"n": 60, "use": use})
            for use in ("random", "neighbours", "importance")
        ),
        DelphiSampler(explain=10, score=60, **SILENT),
        SAEBench(unverified=False, score_top=30, score_weighted=30, **SILENT),
    ],
    ids=lambda sampler: getattr(sampler.non_activating, "use", sampler.name),
)
def test_a_classifier_of_what_windows_look_like_is_at_chance(store, sampler):
    assert accuracy(store, sampler) == pytest.approx(0.5, abs=0.03)


def test_a_classifier_is_at_chance_where_tiles_cut_runs_of_firings(run_store):
    assert accuracy(run_store, RandomSampler(**OPTIONS, non_activating={"n": 60})) == pytest.approx(0.5, abs=0.03)


def accuracy(store, sampler) -> float:
    """Return the balanced accuracy of a classifier that learns from what windows look like, on other latents."""
    x, y, latents = [], [], []
    for latent in range(LATENTS):
        record = sampler.sample(store, LatentId("h", latent), derive_rng(0, "sample", latent))
        windows = [*record.score.activating, *record.score.non_activating]
        shuffled = [windows[i] for i in derive_rng(0, "order", latent).permutation(len(windows))]
        for begin in range(0, len(shuffled), 5):
            prompt = shuffled[begin : begin + 5]
            x += features(prompt)
            y += [window.active for window in prompt]
            latents += [latent] * len(prompt)
    x, y, latents = (np.array(values) for values in (x, y, latents))
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
    scores = []
    for part in range(2):  # learn from half of the latents, with the correct answers, and judge the others
        train = latents % 4 // 2 == part
        judge = LogisticRegression(C=0.01, class_weight="balanced", max_iter=200).fit(x[train], y[train])
        scores.append(balanced_accuracy_score(y[~train], judge.predict(x[~train])))
    return float(np.mean(scores))
