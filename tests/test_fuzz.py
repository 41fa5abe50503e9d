"""Specs and stores damaged at random are read, or refused in a sentence: nothing else is ever raised.

`SAEVAL_FUZZ_EXAMPLES=100000 pytest tests/test_fuzz.py` searches longer than the suite does.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saeval import ActivationStore, LatentId, SaevalError, StoreError
from saeval.plugins import Registry
from saeval.task import load_task
from saeval.testing import planted_store

EXAMPLES = int(os.environ.get("SAEVAL_FUZZ_EXAMPLES", "150"))
SEARCH = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

SPEC = """\
saeval: 1
task: fuzzed
version: "1.0"
description: A small task with a bit of everything
include: []
llms:
  judge: {model: openai/gpt-4o-mini, temperature: 0.5, max_tokens: 100}
  explainer: {model: scripted/x, usd_per_million_input: 1.5}
matrix:
  coder:
    - {id: a, latents: 4}
    - {id: b, latents: 8}
source:
  use: synthetic
  with: {latents: "${matrix.coder.latents}"}
latents: {select: random, n: 3, min_windows: 4}
sampler:
  use: quantiles
  with: {window: 8, explain: 4, score: 10, non_activating: {use: random, n: 10}}
explainer: {use: default, llm: explainer}
scorers:
  detection: {llm: judge, with: {batch: 5}}
  fuzz2: {use: fuzzing, llm: judge, when: {latents: 2}}
baselines: [random_explanation, shuffled_explanation]
measure: [l0, frac_alive]
run: {seed: 0, max_cost_usd: 5, max_failed: 0.05, concurrency: auto}
leaderboard: {rank_by: detection.balanced_accuracy, group_by: coder, x: l0}
"""
HOSTILE = (
    "null", "~", "[]", "{}", "-1", "0", "1e999", ".nan", "-.inf", "1" * 400, "yes", "2026-01-01", "0x1F", "1_000", "''",
    '"\\u202e\\e[31m"', "!!python/name:os.system", "!!binary aGk=", "!!set {a}", "&x [*x]", "*x", "<<: {a: 1}", "? [a]: b",
    "${matrix.coder}", "${", "${matrix.x}", "${run.seed}", "../../etc/passwd", "a" * 3000, "[" * 300, "{a: " * 80, "---",
    "...", "\t", "\x00", "\ud800", "%YAML 9.9", "@", "`", "|", ">", "- ", ": ", "# ", "'", '"', "\u2028", "\ufeff",
)  # fmt: skip
damage = st.tuples(
    st.sampled_from(["insert", "replace value", "delete line", "repeat line", "indent", "cut", "swap"]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.sampled_from(HOSTILE) | st.text(max_size=5),
)


def damaged(text: str, how: str, at: int, other: int, token: str) -> str:
    lines = text.split("\n")
    i, j = at % len(lines), other % len(lines)
    match how:
        case "insert":
            at %= len(text) + 1
            return text[:at] + token + text[at:]
        case "replace value":
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {token}"
        case "delete line":
            del lines[i]
        case "repeat line":
            lines.insert(j, lines[i])
        case "indent":
            lines[i] = " " * (other % 7) + lines[i].lstrip()
        case "cut":
            return text[: at % (len(text) + 1)]
        case "swap":
            lines[i], lines[j] = lines[j], lines[i]
    return "\n".join(lines)


@SEARCH
@given(damages=st.lists(damage, max_size=4))
def test_damaged_spec_is_a_task_or_a_sentence(damages):
    text = SPEC
    for one in damages:
        text = damaged(text, *one)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "spec.yaml")
        file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        try:
            load_task(file, registry=Registry())
        except SaevalError as error:
            assert str(error).strip()
            assert not any(c < " " and c != "\n" for c in str(error)), repr(str(error))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "store"
    planted_store(path, n_latents=4, documents=6)
    return path


def use(store: ActivationStore) -> None:
    """Do with a store what a run does."""
    assert len(store.document_names) >= 0
    for latent in range(min(store.n_latents, 4)):
        store.activations(latent)
        windows = store.windows(latent, 16)
        store.knows(latent, np.arange(3))
        silent = store.silent_windows(latent, 16, 5, np.random.default_rng(0))
        for example in store.examples(LatentId("layers.0", latent), [*windows.ids[:5], *silent], 16):
            "".join(example.tokens)


@SEARCH
@given(
    file=st.integers(0, 50), how=st.sampled_from(["flip", "cut", "grow", "zero", "swap"]),
    at=st.floats(0, 1), byte=st.integers(1, 255), sizes_told=st.booleans(),
)  # fmt: skip
def test_damaged_store_is_refused_when_it_is_verified_and_never_crashes_when_it_is_not(
    whole, file, how, at, byte, sizes_told
):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        shutil.copytree(whole, path)
        files = [*sorted(path.glob("*.npy")), path / "documents.json"]
        victim = files[file % len(files)]
        content = bytearray(victim.read_bytes())
        place = min(int(at * len(content)), len(content) - 1)
        match how:
            case "flip":
                content[place] ^= byte
            case "cut":
                del content[place:]
            case "grow":
                content += bytes([byte]) * 9
            case "zero":
                content[place:] = bytes(len(content) - place)
            case "swap":
                content = bytearray(files[(file + 1) % len(files)].read_bytes())
        changed = bytes(content) != victim.read_bytes()
        victim.write_bytes(content)
        if sizes_told:  # as if the damage had come before the sizes were written down
            manifest = json.loads((path / "manifest.json").read_text())
            manifest["files"][victim.name]["bytes"] = len(content)
            (path / "manifest.json").write_text(json.dumps(manifest))
        try:
            ActivationStore.open(path, verify=True)
        except StoreError:
            assert changed
        else:
            assert not changed
        try:
            use(ActivationStore.open(path))
        except StoreError as error:
            assert str(error).strip()


@SEARCH
@given(key=st.integers(0, 100), value=st.sampled_from([None, -1, 0, 2**70, 1.5, "x", [], {}, True, "\x1b[31m", [[]]]))
def test_damaged_manifest_is_refused_in_a_sentence(whole, key, value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        shutil.copytree(whole, path)
        manifest = json.loads((path / "manifest.json").read_text())
        places = [(manifest, k) for k in manifest] + [(manifest["files"], k) for k in manifest["files"]]
        places += [(facts, k) for facts in manifest["files"].values() for k in facts]
        owner, name = places[key % len(places)]
        owner[name] = value
        (path / "manifest.json").write_text(json.dumps(manifest))
        try:
            use(ActivationStore.open(path))
        except StoreError as error:
            assert str(error).strip()
