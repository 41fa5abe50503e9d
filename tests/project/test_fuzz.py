"""Specs, stores and runs damaged at random are read, or refused in a sentence: nothing else is ever raised.

`SAEVAL_FUZZ_EXAMPLES=100000 pytest tests/project/test_fuzz.py` searches longer than the suite does.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from planted_run import spec, truthful_server
from rich.console import Console

import saeval
from saeval import SaevalError, StoreError
from saeval._run.plan import speed
from saeval._run.run_dir import RunDir
from saeval.llm.ledger import CallLedger
from saeval.plugin import ActivationStore, LatentId
from saeval.plugin.registry import Registry
from saeval.report.files import write_reports
from saeval.report.joined_text import BOARD_FORMATS, written
from saeval.report.terminal import render
from saeval.task.loader import load_task
from saeval.testing.planted import planted_store

EXAMPLES = int(os.environ.get("SAEVAL_FUZZ_EXAMPLES", "150"))
SEARCH = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
SEARCH_RUNS = settings(SEARCH, max_examples=max(1, EXAMPLES // 5))  # a report takes as long as twenty specs

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
leaderboard: {rank_by: detection.balanced_accuracy, correct_for_judge: false}
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


def said(error: SaevalError) -> bool:
    """Whether an error is a sentence, without control characters."""
    return bool(str(error).strip()) and not any(c < " " and c != "\n" for c in str(error))


def damaged_bytes(content: bytearray, how: object, place: int, byte: int, other: Path) -> bytearray:
    """Damage a file's content at a place; nothing happens to it in ways that are not of bytes."""
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
            content = bytearray(other.read_bytes())
    return content


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
            assert said(error), repr(str(error))


INCLUDED = {"other.yaml": SPEC, "third.yaml": "llms:\n  judge: {temperature: 0}\ninclude: [fourth.yaml]\n", "fourth.yaml": "run: {seed: 3}\n"}  # fmt: skip
INCLUDING = "include: [other.yaml, third.yaml]\ntask: includes\nlatents: {n: 2}\n"
RAW = (b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\x85", b"\xc2\x85", b"\xe2\x80\xae", b"\x1b[31m", b"\xed\xa0\x80",
       b"include: [spec.yaml]\n", b"include: [.]\n", b"include: ['\\0']\n", b"include: [/]\n", b"include: [''] \n",
       b"include: [saeval://../x.yaml]\n", b'include: ["saeval://\\0"]\n', b"include: ['saeval://\\0']\n", b"include: [third.yaml, third.yaml]\n")  # fmt: skip
NAMES = ("spec.yaml", *INCLUDED)


@SEARCH
@given(
    damages=st.lists(st.tuples(st.sampled_from(NAMES), damage), max_size=4),
    raw=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5000), st.sampled_from(RAW)), max_size=2),
)
def test_damaged_included_file_is_a_task_or_a_sentence(damages, raw):
    texts = {"spec.yaml": INCLUDING, **INCLUDED}
    for name, one in damages:
        texts[name] = damaged(texts[name], *one)
    files = {name: text.encode("utf-8", errors="surrogatepass") for name, text in texts.items()}
    for name, at, token in raw:
        content = files[name]
        place = (
            content.rfind(b"\n", 0, at % (len(content) + 1)) + 1
            if token.startswith(b"include")
            else at % (len(content) + 1)
        )
        files[name] = content[:place] + token + content[place:]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        try:
            load_task(Path(folder, "spec.yaml"), registry=Registry())
        except SaevalError as error:
            assert said(error), repr(str(error))


# --- stores ---


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
        content = damaged_bytes(content, how, place, byte, files[(file + 1) % len(files)])
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
            assert said(error), repr(str(error))


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
            assert said(error), repr(str(error))


# --- run directories ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two cells, with every file that a run has, and its prompts."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        source = {"use": "synthetic", "with": {"n_latents": "${matrix.n}", "documents": 30}}
        saeval.run(
            spec(server, source=source, matrix={"n": [5, 6]}, latents={"n": 3, "min_windows": 10},
                 sampler={"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}}), out=folder / "run",
        )  # fmt: skip
    shutil.rmtree(folder / "run" / "report")
    return folder / "run"


VALUES = [None, -1, 0, 2**70, 1.5, float("nan"), float("inf"), -1e308, "", "x", "\x1b[31m", "\ud800", "../..", "a\x00b", [], {}, True,
          [[]], [None], {"x": {}}, "x" * 3000, "</script>"]  # fmt: skip


def places(value, found):
    """Every place in a JSON document where a value could be another: (owner, key)."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def other_json(content: bytes, at: int, value: object) -> bytes:
    """Replace one value of a JSON document, or of a line of JSON."""
    lines = [json.loads(content)] if content.startswith(b"{\n") else [json.loads(x) for x in content.splitlines()]
    spots = places(lines, [])
    owner, key = spots[at % len(spots)]
    if value == "gone" and isinstance(owner, dict):
        del owner[key]
    elif value == "renamed" and isinstance(owner, dict):
        owner["\u202eother"] = owner.pop(key)
    else:
        owner[key] = value
    indent = 1 if len(lines) == 1 else None
    return "".join(json.dumps(x, indent=indent) + "\n" for x in lines).encode()


def other_table(file: Path, at: int, how: str) -> None:
    """Write a Parquet table whose columns are not what they should be."""
    table = pq.read_table(file)
    i = at % table.num_columns
    name, column, rows = table.column_names[i], table.column(i), table.num_rows
    nested = [[["\x1b"]]] * rows
    made = {
        "null": lambda: pa.nulls(rows), "typed null": lambda: pa.nulls(rows, column.type), "text": lambda: pa.array(["x"] * rows),
        "huge": lambda: pa.array([2**64 - 1] * rows, pa.uint64()), "float": lambda: pa.array([float("nan")] * rows),
        "infinite": lambda: pa.array([float("inf")] * rows), "bool": lambda: pa.array([True] * rows), "bytes": lambda: pa.array([b"\xff"] * rows),
        "nested": lambda: pa.array(nested), "struct": lambda: pa.array([{"a": 1}] * rows), "empty lists": lambda: pa.array([[]] * rows, pa.list_(pa.int8())),
        "null lists": lambda: pa.array([[None]] * rows, pa.list_(pa.string())), "day": lambda: pa.array([datetime.date(2026, 1, 1)] * rows),
        "negative": lambda: pa.array([-1] * rows), "category": lambda: pa.array(["x"] * rows).dictionary_encode(),
        "some null": lambda: pa.array([None if k == at % (rows or 1) else v for k, v in enumerate(column.to_pylist())], column.type),
    }  # fmt: skip
    if how in made:
        table = table.set_column(i, name, made[how]())
    elif how == "gone":
        table = table.remove_column(i)
    elif how == "twice":
        table = table.append_column(name, column)
    elif how == "renamed":
        table = table.rename_columns([f"{name}\x1b" if k == i else n for k, n in enumerate(table.column_names)])
    elif how == "no rows":
        table = table.slice(0, 0)
    elif how == "rows twice":
        table = pa.concat_tables([table, table])
    pq.write_table(table, file)


TABLES = ["null", "typed null", "text", "huge", "float", "infinite", "bool", "bytes", "nested", "struct", "empty lists", "null lists", "day",
          "negative", "category", "some null", "gone", "twice", "renamed", "no rows", "rows twice"]  # fmt: skip


def report(path: Path) -> None:
    """Do what `saeval report` does."""
    result = saeval.read(path)
    write_reports(result, path / "report")
    render(result, Console(file=io.StringIO()))


def tables(path: Path) -> None:
    """Read each table, as for a data frame."""
    read = saeval.read(path)
    _ = read.scores
    for name in ("latents", "latent_scores", "explanations", "examples", "judgements", "calls"):
        try:
            getattr(read, name)
        except SaevalError as error:
            assert said(error), repr(str(error))


def ledger(path: Path) -> None:
    """Read what a run that goes on reads, and what a plan that takes its speed from it does."""
    with RunDir(path):
        log = CallLedger(path / "calls.jsonl")
        log.totals(), log.spent(), list(log.calls())
    speed(path)


def board(path: Path) -> None:
    """Do what `saeval leaderboard` does."""
    for format_ in BOARD_FORMATS:
        written(saeval.join([path]), format_)


def comparison(path: Path) -> None:
    """Do what `saeval compare` does."""
    names = [cell.cell for cell in saeval.read(path).cells]
    if len(names) > 1:
        saeval.compare(f"{path}:{names[0]}", f"{path}:{names[1]}")


DOORS = (report, tables, ledger, board, comparison)


@SEARCH_RUNS
@given(
    file=st.integers(0, 50), at=st.integers(0, 100_000), byte=st.integers(1, 255),
    how=st.sampled_from(["flip", "cut", "grow", "zero", "swap", "gone", "folder"]) | st.tuples(st.just("json"), st.sampled_from([*VALUES, "gone", "renamed"]))
    | st.tuples(st.just("table"), st.sampled_from(TABLES)),
)  # fmt: skip
def test_damaged_run_is_reported_or_refused_in_a_sentence(run, file, at, byte, how):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        shutil.copytree(run, path)
        kinds = {"json": (".json", ".jsonl"), "table": (".parquet",)}.get(how[0])
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.stat().st_size)
        files = [f for f in files if f.suffix in kinds and f.name != "journal.jsonl"] if kinds else files
        victim = files[file % len(files)]
        content = bytearray(victim.read_bytes())
        if how[0] == "json":
            content = bytearray(other_json(bytes(content), at, how[1]))
        else:
            content = damaged_bytes(content, how, at % len(content), byte, files[(file + 1) % len(files)])
        if how in ("gone", "folder"):
            victim.unlink()
            if how == "folder":
                victim.mkdir()
        elif how[0] == "table":
            other_table(victim, at, how[1])
        else:
            victim.write_bytes(content)
        for read in DOORS:
            try:
                read(path)
            except SaevalError as error:
                assert said(error), repr(str(error))
