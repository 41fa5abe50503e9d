"""The JSON Schema of task specs: every valid spec passes, typical mistakes do not, whatever is installed."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from pydantic import Field
from root import ROOT

from saeval import SpecError
from saeval.cli.group import main
from saeval.plugin import Metric, Score, Scorer
from saeval.plugin.registry import Loaded, Registry
from saeval.task.loader import load_task
from saeval.task.schema import task_schema
from saeval.task.spec.models import OPTION_KEYS, STEP_KEYS

TASKS = [file for file in (ROOT / "tasks").rglob("*.yaml") if isinstance(yaml.safe_load(file.read_text()), dict)]
SPEC = """
saeval: 1
task: mine
version: "1"
llms:
  judge: {model: openai/gpt-4o-mini, max_tokens: 100}
  local: {model: openai_compatible/mine, api_base: "http://localhost:8000/v1", retries: 2}
  base: {model: "${matrix.base}"}
matrix: {base: [hf/one, hf/two], n: [5, 10]}
source:
  use: transformers
  with:
    model: google/gemma-3-270m
    hookpoint: layers.9
    coder: {use: sae_lens, with: {path: saes/topk}}
    corpus: {path: prose.jsonl, tokens: 1000000}
latents: {n: "${matrix.n}"}
sampler: {use: random, with: {explain: "${matrix.n}", non_activating: {use: neighbours, k: 5}}}
explainer: top_tokens
scorers:
  detection:
  fuzzing: {with: {batch: 5}, llm: local, when: {latents: 3}}
  ratings: {use: human, with: {path: ratings.csv}}
  mine: {use: "./mine.py:Mine", with: {anything: 1}}
  f1: {use: evaluate, with: {metric: f1, scorer: {use: detection, with: {batch: 2}}}}
baselines: [random_explanation, shuffled_explanation, top_tokens, neurons, {use: random_sae, with: {k: 32}}]
run: {concurrency: auto, max_cost_usd: 1.5}
"""


@pytest.fixture(scope="module")
def validator():
    schema = task_schema(Registry(disabled=["*"]))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_shipped_tasks_and_presets_are_valid(validator, file):
    validator.validate(yaml.safe_load(file.read_text()))


def test_spec_that_uses_everything_is_valid(validator):
    validator.validate(yaml.safe_load(SPEC))


def test_spec_of_the_task_reference_is_valid(validator):
    page = (ROOT / "docs" / "task-reference.md").read_text()
    validator.validate({**yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])})


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("saeval", 2),
        ("task", None),
        ("version", 1.0),
        ("explaner", "default"),
        ("source", "transformers"),  # needs options
        ("source.use", "transformer"),
        ("source.with.modle", "x"),
        ("source.with.corpus.token", 5),
        ("source.with.coder.use", "sae_lense"),
        ("source.with.coder.with.pth", "x"),
        ("source.with.model", None),
        ("latents.n", 0),
        ("latents.n", "many"),
        ("sampler.with.window", 2),
        ("sampler.with.non_activating.use", "nearest"),
        ("sampler.with.non_activating.by", "decode"),
        ("explainer", "defalt"),
        ("scorers", {}),
        ("scorers.detecton", {}),
        ("scorers.fuzzing.with.bach", 5),
        ("scorers.fuzzing.with.batch", "five"),
        ("scorers.ratings.with", {}),
        ("scorers.f1.with.scorer.with.bach", 5),
        ("scorers.fuzzing.wen", {"latents": 3}),
        ("baselines", ["random_sea"]),
        ("baselines", [{"use": "random_sae", "with": {"n_latent": 5}}]),
        ("baselines", [{"use": "neurons", "llm": "judge"}]),
        ("baselines", [{"use": "top_tokens", "baselines": []}]),
        ("baselines", [{"use": "shuffled_explanation", "with": {"seed": 1}}]),
        ("source.when", {"latents": 3}),
        ("source.with.coder.when", {"latents": 3}),
        ("sampler.llm", "judge"),
        ("explainer", {"use": "top_tokens", "baselines": []}),
        ("scorers.f1.with.scorer.llm", "judge"),
        ("run.trackers", [{"use": "wandb", "llm": "judge"}]),
        ("llms.judge.max_token", 5),
        ("llms.judge.temperature", -1),
        ("llms.local.api_base", None),
        ("llms.judge.model", None),
        ("run.sed", 1),
        ("run.concurrency", "fast"),
    ],
)
def test_mistake_is_found(validator, place, wrong):
    spec = copy.deepcopy(yaml.safe_load(SPEC))
    *path, last = place.split(".")
    at = spec
    for key in path:
        at = at[key]
    if wrong is None:
        del at[last]
    else:
        at[last] = wrong
    assert list(validator.iter_errors(spec)), f"{place}: {wrong!r} passes"


def test_spec_that_includes_another_may_leave_out_what_that_one_says(validator):
    over = {"include": ["saeval://quickstart.yaml"], "saeval": 1, "task": "mine", "version": "1"}
    over |= {"scorers": {"mine": {"when": {"latents": 5}}}, "llms": {"judge": {"max_tokens": 5}}}
    validator.validate(over)
    validator.validate({**over, "source": {"with": {"hookpoint": "layers.3"}}})
    assert not validator.is_valid({**over, "source": {"use": "transformers", "with": {"hook": "layers.3"}}})
    assert not validator.is_valid({k: v for k, v in over.items() if k != "include"})


class Odd(Scorer):
    """Counts. It has an option that JSON has no schema for."""

    name = "odd"
    metrics = (Metric("odd"),)
    how: type = int
    """How to count."""

    async def score(self, explanation, examples, context):
        return Score(values={"odd": 1.0})


class Fine(Scorer):
    """Weighs."""

    name = "fine"
    metrics = (Metric("fine"),)
    scale: float = Field(default=1.0, gt=0)
    """How heavily."""

    async def score(self, explanation, examples, context):
        return Score(values={"fine": 1.0})


def test_options_of_third_parties_are_there_with_their_descriptions(monkeypatch):
    names = Registry.names

    def and_acme(self, kind):
        mine = [Loaded(f"acme/{cls.name}", "scorer", cls, "saeval-acme", "1.0") for cls in (Odd, Fine)]
        return names(self, kind) + (mine if kind == "scorer" else [])

    monkeypatch.setattr(Registry, "names", and_acme)
    schema = task_schema(Registry(disabled=["*"]))
    validator = Draft202012Validator(schema)
    spec = yaml.safe_load(SPEC)
    for options, valid in (({"scale": 2}, True), ({"scale": 0}, False), ({"scal": 2}, False)):
        spec["scorers"] = {"weighed": {"use": "acme/fine", "with": options}}
        assert validator.is_valid(spec) == valid
    spec["scorers"] = {"acme/odd": {"with": {"anything": 1}}}
    assert validator.is_valid(spec)
    assert schema["$defs"]["scorer.acme.fine"]["properties"]["scale"]["description"] == "How heavily."


def applying(validator, schema, value):
    """A schema and all that apply beside it to a value, as editors find them: refs, alternatives, conditions that hold."""
    if not isinstance(schema, dict):
        return
    yield schema
    inner = [*schema.get("allOf", ()), *schema.get("anyOf", ())]
    if "$ref" in schema:
        inner.append(validator.schema["$defs"][schema["$ref"].rpartition("/")[2]])
    if "if" in schema and validator.evolve(schema=schema["if"]).is_valid(value):
        inner.append(schema.get("then"))
    for found in inner:
        yield from applying(validator, found, value)


def offered(validator, text):
    """What an editor offers where `HERE` stands in a spec: keys of the mapping there, or values."""
    value, schemas = yaml.safe_load(text), [validator.schema]
    while value != "HERE":
        schemas = [found for schema in schemas for found in applying(validator, schema, value)]
        if isinstance(value, dict) and "HERE" in value:
            return {key for schema in schemas for key in schema.get("properties", {})}
        if isinstance(value, dict):
            *_, (key, below) = value.items()
            inside = [s["properties"].get(key, s.get("additionalProperties")) for s in schemas if "properties" in s]
            inside += [
                s["additionalProperties"] for s in schemas if "properties" not in s and "additionalProperties" in s
            ]
        else:
            below, inside = value[-1], [s["items"] for s in schemas if "items" in s]
        value, schemas = below, inside
    schemas = [found for schema in schemas for found in applying(validator, schema, value)]
    return {c for s in schemas for c in [*s.get("enum", ()), *([s["const"]] if "const" in s else [])]}


@pytest.mark.parametrize(
    ("text", "some"),
    [
        ("saeval: 1\nHERE: ", {"source", "scorers", "llms", "matrix", "run"}),
        ("source: {use: HERE}", {"transformers", "recorded", "delphi"}),
        ("source: {use: transformers, with: {HERE: }}", {"model", "hookpoint", "coder", "corpus"}),
        ("source: {use: transformers, with: {coder: {use: HERE}}}", {"sae_lens", "sparsify", "neurons"}),
        ("source: {use: transformers, with: {corpus: {HERE: }}}", {"path", "dataset", "tokens"}),
        ("scorers: {HERE: }", {"detection", "fuzzing", "simulation"}),
        ("scorers: {fuzzing: {with: {HERE: }}}", {"batch", "threshold", "negatives"}),
        ("scorers: {fuzzing: {with: {negatives: HERE}}}", {"matched", "active", "fixed"}),
        ("scorers: {mine: {use: simulation, with: {HERE: }}}", {"mode", "windows"}),
        ("explainer: HERE", {"default", "top_tokens"}),
        ("sampler: {use: random, with: {non_activating: {use: HERE}}}", {"random", "neighbours", "similar"}),
        ("llms: {judge: {HERE: }}", {"model", "temperature", "max_tokens"}),
        ("llms: {judge: {model: openai_compatible/x, HERE: }}", {"model", "api_base", "temperature"}),
        ("baselines: [HERE]", {"random_explanation", "random_sae", "top_tokens"}),
        ("run: {HERE: }", {"seed", "max_cost_usd", "max_failed"}),
    ],
)
def test_editor_is_offered_what_is_allowed_there(validator, text, some):
    assert some <= offered(validator, text)


def test_editor_is_offered_the_options_of_the_plugin_that_is_used_and_of_no_other(validator):
    assert offered(validator, "scorers: {mine: {use: simulation, with: {HERE: }}}") == {
        "mode",
        "windows",
        "top_logprobs",
    }
    assert "threshold" not in offered(validator, "scorers: {detection: {with: {HERE: }}}")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("source: {use: transformers, HERE: }", OPTION_KEYS),
        ("explainer: {use: top_tokens, HERE: }", STEP_KEYS["explainer"]),
        ("scorers: {detection: {HERE: }}", STEP_KEYS["scorer"]),
        ("scorers: {f1: {use: evaluate, with: {scorer: {use: detection, HERE: }}}}", OPTION_KEYS),
    ],
)
def test_editor_is_offered_only_the_keys_that_have_an_effect_on_a_part(validator, text, keys):
    assert offered(validator, text) == keys


@pytest.mark.parametrize(
    "baseline",
    [
        {"use": "random_sae", "with": {"k": 32}, "when": {"latents": 3}},
        {"use": "shuffled_explanation", "when": {"latents": 3}},
        {"use": "random_explanation", "when": {"latents": 3}},
        {"use": "top_tokens", "when": {"latents": 3}},
        {"use": "./mine.py:Same", "llm": "judge"},
    ],
)
def test_baseline_with_keys_that_have_an_effect_is_valid(validator, baseline):
    validator.validate({**yaml.safe_load(SPEC), "baselines": [baseline]})


MODEL = {"model": "m", "hookpoint": "layers.1", "corpus": {"path": "prose"}}


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({"scorers": {"saeval/detection": None}}, True),
        ({"scorers": {"x": {"use": "saeval/detection", "llm": "judge", "with": {"batch": 3}}}}, True),
        ({"scorers": {"x": {"use": "saeval/detection", "with": {"bach": 3}}}}, False),
        ({"scorers": {"x": {"use": "saeval/detecton"}}}, False),
        ({"scorers": {"x": {"use": "saeval/human"}}}, False),  # needs options
        ({"scorers": {"x": {"use": "evaluate", "with": {"metric": "f1", "scorer": {"use": "saeval/detection"}}}}}, True),
        ({"source": "saeval/synthetic", "sampler": "saeval/random", "explainer": "saeval/top_tokens"}, True),
        ({"source": "saeval/transformers"}, False),
        ({"source": {"use": "saeval/transformers", "with": {**MODEL, "coder": "saeval/random_sae"}}}, True),
        ({"run": {"trackers": ["saeval/wandb"]}}, True),
        ({"run": {"trackers": [{"with": {}}]}}, False),
        ({"llms": {"judge": {"model": "saeval/openai_compatible/m", "api_base": "http://[::1]/v1", "scores": True}}}, True),
        ({"llms": {"judge": {"model": "saeval/openai_compatible/m"}}}, False),
        ({"baselines": ["saeval/top_tokens", {"use": "saeval/random"}, "random_explanation"]}, True),
        ({"baselines": ["saeval/random_explanation"]}, False),
        ({"baselines": ["saeval/shuffled_explanation"]}, False),
        ({"baselines": [{"when": {"latents": 3}}]}, False),
        ({"baselines": [{}]}, False),
        ({"baselines": [{"use": "top_tokens", "llm": "judge"}]}, False),
        ({"baselines": [{"use": "random_explanation", "llm": "judge"}]}, False),
        ({"explainer": {"use": "top_tokens", "llm": "judge"}}, False),
        ({"explainer": {"use": "default", "llm": "judge"}}, True),
        ({"scorers": {"embedding": {"llm": "judge"}}}, False),
        ({"scorers": {"intruder": {"baselines": []}}}, True),
        ({"scorers": {"intruder": {"baselines": ["shuffled_explanation"]}}}, False),
        ({"scorers": {"x": {"use": "saeval/embedding", "llm": "judge"}}}, False),
    ],
)  # fmt: skip
def test_schema_and_loader_accept_the_same_names_and_keys(validator, changes, valid):
    spec = {"saeval": 1, "task": "t", "version": "1", "source": "synthetic", "explainer": "top_tokens"}
    spec |= {"scorers": {"detection": None}, "llms": {"judge": {"model": "openai/gpt-4o-mini"}}, **changes}
    assert validator.is_valid(spec) == valid
    with nullcontext() if valid else pytest.raises(SpecError):
        load_task(spec, registry=Registry(disabled=["*"]), check=False)


def test_command_prints_the_schema_or_writes_it(tmp_path):
    printed = CliRunner().invoke(main, ["schema", "--without", "*"])
    assert json.loads(printed.output)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    written = CliRunner().invoke(main, ["schema", "--without", "*", "--out", str(tmp_path / "task.json")])
    assert written.exit_code == 0 and "yaml-language-server: $schema=" in written.output
    assert json.loads((tmp_path / "task.json").read_text()) == json.loads(printed.output)
