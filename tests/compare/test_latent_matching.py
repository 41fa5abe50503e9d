"""Copies of a coder are matched back, strangers score as strangers do, and spaces that differ are not compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from made_cells import cell_of, explained, write_run
from tiny import tiny_sae

from saeval import InputError
from saeval._compare import latent_matching as similarity
from saeval._compare.latent_matching import compare_vectors, match
from saeval.cli.group import main
from saeval.plugin import derive_rng


def directions(key: str, n: int = 300, d: int = 64) -> np.ndarray:
    return derive_rng(1, key).normal(size=(n, d)).astype(np.float32)


def copy(vectors: np.ndarray, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """A permuted, noisy copy at other lengths, and where each of its rows came from."""
    rng = derive_rng(2, "copy")
    order = rng.permutation(len(vectors))
    return vectors[order] * rng.uniform(0.5, 2, (len(vectors), 1)) + noise * rng.normal(size=vectors.shape), order


METHODS = {"hungarian": 8192, "mutual nearest neighbours": 10}


@pytest.mark.parametrize("method", METHODS)
def test_a_permuted_noisy_copy_is_matched_back_exactly(method):
    x = directions("x", 5000 if method != "hungarian" else 300)
    y, order = copy(x)
    found, random, shuffled = compare_vectors(x, y, derive_rng(3), hungarian_max=METHODS[method])
    assert found.method == method and len(found.pairs) == len(x)
    assert (order[found.pairs[:, 1]] == found.pairs[:, 0]).all()
    assert found.score > 0.99 and random < 0.65 and abs(shuffled) < 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("common", [0.0, 3.0])
def test_independent_coders_score_at_the_random_baseline(method, common):
    """With a direction that all latents share, too: the baseline has it as well."""
    x, y = (directions(key) + common * directions("common", 1) / 8 for key in "xy")
    found, random, shuffled = compare_vectors(x, y, derive_rng(4), hungarian_max=METHODS[method])
    assert found.score == pytest.approx(random, abs=0.02)
    assert found.score > shuffled + 0.15  # what choosing the best match alone makes


def test_half_a_copy_scores_between_a_stranger_and_a_copy():
    x = directions("x")
    y, _ = copy(x)
    y[:150] = directions("y", 150)
    found, random, _ = compare_vectors(x, y, derive_rng(5))
    assert random + 0.15 < found.score < 0.9 and (found.cosines > 0.95).sum() == 150


def test_sides_of_different_sizes_match_the_smaller_one():
    x = directions("x")
    found, _, _ = compare_vectors(x, x[:40], derive_rng(6))
    assert len(found.pairs) == 40 and (found.pairs[:, 0] == found.pairs[:, 1]).all()


def test_tiles_give_the_same_neighbours_as_the_whole(monkeypatch):
    x, y = (directions(key) / np.linalg.norm(directions(key), axis=1, keepdims=True) for key in "xy")
    whole = match(x, y, hungarian_max=0)
    monkeypatch.setattr(similarity, "_TILE", 7)
    tiled = match(x, y, hungarian_max=0)
    cosines = x @ y.T
    expected = [i for i in range(len(x)) if cosines[:, cosines[i].argmax()].argmax() == i]
    assert (whole.pairs == tiled.pairs).all() and list(whole.pairs[:, 0]) == expected


def test_shuffled_is_the_mean_over_all_other_partners():
    x, y = directions("x", 30), directions("y", 30) + 0.3
    found, _, shuffled = compare_vectors(x, y, derive_rng(7))
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    cosines = units[0][found.pairs[:, 0]] @ units[1][found.pairs[:, 1]].T
    assert shuffled == pytest.approx((cosines.sum() - np.trace(cosines)) / (30 * 29), abs=1e-5)


# --- runs ---


def embed(model: str, texts: list[str]) -> np.ndarray:
    """Each text a direction of its own."""
    made = np.stack([derive_rng(8, model, text).normal(size=32) for text in texts])
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def run_with(folder, *cells):
    scores = {"detection.balanced_accuracy": {i: 0.5 + i / 40 for i in range(12)}}
    write_run(folder, *(
        (cell_of(name, scores, baseline=baseline), scores, {"explanations": explained(texts)})
        for name, baseline, texts in cells
    ))  # fmt: skip
    return folder


def words(start: int, stop: int) -> dict[int, str]:
    return {i: f"words about {start + i}" for i in range(stop - start)}


def test_explanations_are_matched_by_meaning_across_runs(tmp_path):
    a = run_with(tmp_path / "a", ("layer=1", None, words(0, 12)), ("random_sae", "random_sae", words(50, 62)))
    b = run_with(tmp_path / "b", ("layer=2", None, {11 - i: t for i, t in words(0, 12).items()}))
    (found,), left_out = similarity.similarities([a, b], by=["explanations"], embed=embed)
    assert found.score == pytest.approx(1, abs=1e-5) and not left_out
    assert {(i, j) for i, j, _ in found.pairs} == {(i, 11 - i) for i in range(12)}
    assert found.random < 0.75 and abs(found.shuffled) < 0.1


def test_several_cells_make_a_matrix_of_all_pairs(tmp_path):
    run = run_with(tmp_path / "a", *((f"layer={i}", None, words(4 * i, 4 * i + 12)) for i in range(3)))
    found, _ = similarity.similarities([run], by=["explanations"], embed=embed)
    assert [(s.a.rpartition("=")[2], s.b.rpartition("=")[2]) for s in found] == [("0", "1"), ("0", "2"), ("1", "2")]
    assert found[0].score == pytest.approx(found[2].score, abs=0.1) and found[1].score < found[0].score - 0.1
    assert "mean cosine of matched latents" in similarity.text(found)


def test_what_cannot_be_compared_is_said(tmp_path):
    a = run_with(tmp_path / "a", ("x", None, words(0, 12)))
    with pytest.raises(InputError, match="at least two cells"):
        similarity.similarities([a], by=["explanations"], embed=embed)
    with pytest.raises(InputError, match="given twice"):
        similarity.similarities([a, a], by=["explanations"], embed=embed)
    b = run_with(tmp_path / "b", ("x", None, {}))
    with pytest.raises(InputError, match="no explanations to embed"):
        similarity.similarities([a, b], by=["explanations"], embed=embed)
    with pytest.raises(InputError, match=r"spec\.yaml: does not exist"):
        similarity.similarities([a, b], by=["decoder"])
    c = run_with(tmp_path / "c", ("x", None, words(3, 9)))
    found, left_out = similarity.similarities([a, c], embed=embed)
    assert [s.basis for s in found] == ["explanations"] and "decoder: " in left_out[0]


def coder_spec(folder, **changes):
    """A spec over two SAEs, one a permuted copy of the other, and its run directory."""
    from safetensors.torch import load_file, save_file

    for name in ("one", "other"):
        tiny_sae(folder / name, seed=1, k=4)
    order = derive_rng(9, "order").permutation(40).tolist()
    file = folder / "other" / "sae_weights.safetensors"
    w = load_file(file)
    moved = {**w, "W_enc": w["W_enc"][:, order].contiguous(), "W_dec": w["W_dec"][order].contiguous()}
    save_file(moved, file)
    spec = {
        "saeval": 1, "task": "t", "version": "1.0", "latents": {"n": 4},
        "matrix": {"coder": [{"id": n, "path": str(folder / n)} for n in ("one", "other")]},
        "source": {"use": "transformers", "with": {
            "model": str(folder / "model"), "corpus": {"path": str(folder / "c.jsonl")}, "hookpoint": "layers.1",
            "coder": {"use": "sae_lens", "with": {"path": "${matrix.coder.path}"}},
        }},
        "sampler": "random", "explainer": "top_tokens", "scorers": {"embedding": {}}, **changes,
    }  # fmt: skip
    run = run_with(folder / "run", ("coder=one", None, words(0, 12)), ("coder=other", None, words(0, 12)))
    (run / "spec.yaml").write_text(yaml.safe_dump(spec))
    return run, order


@pytest.mark.parametrize("basis", ["decoder", "encoder"])
def test_directions_of_the_runs_coders_are_loaded_as_its_spec_says(tmp_path, basis):
    run, order = coder_spec(tmp_path)
    done = CliRunner().invoke(main, ["similarity", str(run), "--by", basis, "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.output)["similarities"]
    assert found["score"] == pytest.approx(1, abs=1e-5) and found["random"] < 0.9 and found["method"] == "hungarian"
    assert {(i, j) for i, j, _ in found["pairs"]} == {(i, j) for j, i in enumerate(order)}


def test_coders_of_different_models_are_not_compared(tmp_path):
    run, _ = coder_spec(tmp_path / "a")
    other, _ = coder_spec(tmp_path / "b")
    tiny_sae(tmp_path / "b" / "other", d_in=24, k=4)
    found, _ = similarity.similarities([f"{run}:coder=one", f"{other}:coder=other"], by=["decoder"])
    assert found[0].score is None and found[0].method == "different spaces: 16 and 24 dimensions"
    assert "different spaces" in similarity.text(found)


def test_a_run_directory_cannot_make_us_run_its_code(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    run, _ = coder_spec(tmp_path, explainer=f"{tmp_path}/evil.py:Evil")
    done = CliRunner().invoke(main, ["similarity", str(run), "--by", "decoder"])
    assert done.exit_code == 2 and "code in a single file" in done.output and not (tmp_path / "ran").exists()
