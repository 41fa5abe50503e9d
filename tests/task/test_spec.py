"""A spec's mistakes are all reported at once, each with its place; merging and filling in do what they say."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, strategies as st

import saeval
from saeval import SpecError
from saeval.cli.group import main
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.task.spec import parse_assignment, plain
from saeval.task.spec.document import override, read_document
from saeval.task.spec.matrix import cells_of
from saeval.task.spec.validation import parse

GOOD = """\
saeval: 1
task: small
version: "1.0"
source: {use: synthetic}
explainer: top_tokens
scorers:
  detection: {with: {batch: 5}}
"""


def read(tmp_path, text, name="spec.yaml", **others):
    for other, content in others.items():
        (tmp_path / f"{other}.yaml").write_text(content)
    (tmp_path / name).write_text(text)
    return read_document(tmp_path / name, lambda reference, file: file.parent / reference)


def problems(tmp_path, text):
    with pytest.raises(SpecError) as error:
        document = read(tmp_path, text)
        for _, filled in cells_of(document):
            parse(filled)
    return list(error.value.problems)


def test_good_spec_is_read_and_labels_name_their_scorer(tmp_path):
    spec = parse(read(tmp_path, GOOD))
    assert spec.scorers["detection"].use == "detection"
    assert spec.explainer.use == "top_tokens"


def test_every_mistake_is_reported_with_its_line_and_a_suggestion(tmp_path):
    found = problems(
        tmp_path,
        GOOD.replace("explainer:", "explaner:") + "run: {sed: 1, max_failed: 3}\nlatents: {n: many}\n",
    )
    text = "\n".join(found)
    assert "spec.yaml:5: explaner: no such key, did you mean 'explainer'?" in text
    assert "explainer: is missing" in text
    assert "spec.yaml:8: run.sed: no such key, did you mean 'seed'?" in text
    assert "spec.yaml:8: run.max_failed: should be less than or equal to 1 (got 3)" in text
    assert "spec.yaml:9: latents.n: should be a valid integer" in text and "(got 'many')" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: {concurrency: 0}", "run.concurrency: should be `auto` or a whole number of at least 1 (got 0)"),
        (
            "latents: {select: list, indices: [3, -1]}",
            "latents.indices.1: should be greater than or equal to 0 (got -1)",
        ),
    ],
)
def test_number_that_no_run_could_use_is_refused(tmp_path, text, said):
    assert said in "\n".join(problems(tmp_path, GOOD + text + "\n"))


def test_key_given_twice_is_an_error_with_both_lines(tmp_path):
    assert problems(tmp_path, GOOD + "task: other\n") == ["spec.yaml:8: key 'task' is given twice (first on line 2)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not YAML"),
        ("- 1\n", "a spec should be a mapping"),
        ("", "a spec should be a mapping"),
        (GOOD + "x: !!python/object/apply:os.system ['true']\n", "tags are not allowed"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
         "is an alias repeated?"),
        ("a: " + "[" * 2000 + "]" * 2000, "spec.yaml"),
    ],
)  # fmt: skip
def test_broken_or_hostile_yaml_is_one_clear_sentence(tmp_path, text, message):
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize("key", ["api_key", "OPENAI_API_KEY", "password", "access_token"])
def test_keys_in_a_spec_are_refused(tmp_path, key):
    (found,) = problems(tmp_path, GOOD + f"llms:\n  judge: {{model: openai/gpt-4o-mini, {key}: sk-123}}\n")
    assert f"spec.yaml:9: llms.judge.{key}" in found
    assert "do not belong in a spec" in found
    assert "sk-123" not in found


def test_included_spec_is_merged_and_a_part_that_changes_its_use_starts_clean(tmp_path):
    base = GOOD.replace("{use: synthetic}", "{use: synthetic, with: {seed: 3}}") + "run: {seed: 7, max_failed: 0.5}\n"
    child = "include: [base.yaml]\ntask: child\nsource: {use: recorded}\nrun: {seed: 8}\n"
    document = read(tmp_path, child, base=base)
    assert plain(document.data["source"]) == {"use": "recorded"}
    assert plain(document.data["run"]) == {"seed": 8, "max_failed": 0.5}
    assert plain(document.data["task"]) == "child"
    assert "include" not in document.data


def test_mistake_in_an_included_file_names_that_file(tmp_path):
    with pytest.raises(SpecError, match=r"base\.yaml:8: run\.sed"):
        parse(read(tmp_path, "include: [base.yaml]\ntask: child\n", base=GOOD + "run: {sed: 1}\n"))


def test_spec_that_includes_itself_is_refused(tmp_path):
    with pytest.raises(SpecError, match="includes itself"):
        read(tmp_path, "include: [b.yaml]\n", b="include: [spec.yaml]\n")


def test_matrix_makes_a_cell_of_each_combination_but_the_excluded(tmp_path):
    text = GOOD.replace(
        "{use: synthetic}",
        "{use: synthetic, with: {path: '${matrix.sae.path}', name: 'l${matrix.layer}-${matrix.sae}'}}",
    )
    text += "matrix:\n  sae: [{id: a, path: x/y}, {id: b, path: z}]\n  layer: [3, 4]\nexclude: [{sae: b, layer: 4}]\n"
    cells = [plain(d.data["source"]["with"]) for _, d in cells_of(read(tmp_path, text))]
    assert cells == [{"path": "x/y", "name": "l3-a"}, {"path": "x/y", "name": "l4-a"}, {"path": "z", "name": "l3-b"}]


def test_whole_value_filled_in_keeps_its_type(tmp_path):
    text = GOOD + "latents: {n: '${matrix.n}'}\nmatrix: {n: [5, 6]}\n"
    assert [parse(d).latents.n for _, d in cells_of(read(tmp_path, text))] == [5, 6]


@pytest.mark.parametrize("expression", ["matrix.layr", "env.HOME", "matrix.sae.nope", "", "__import__('os')"])
def test_unknown_expression_is_refused_with_its_line(tmp_path, expression):
    text = GOOD + f'description: "${{{expression}}}"\nmatrix: {{sae: [{{id: a}}]}}\n'
    (found,) = problems(tmp_path, text)
    assert found.startswith("spec.yaml:8: description")


def test_every_wrong_expression_of_one_text_is_told(tmp_path):
    text = GOOD + "description: '${env.HOME} ${matrix.sae.id} ${matrix.n}'\nmatrix: {sae: [{id: a}]}\n"
    assert problems(tmp_path, text) == [
        "spec.yaml:8: description: only ${matrix.AXIS} can be filled in (got ${env.HOME})",
        "spec.yaml:8: description: ${matrix.n}: no 'n' there; it has sae",
    ]


def test_overrides_are_typed_and_false_works(tmp_path):
    document = override(read(tmp_path, GOOD), dict(map(parse_assignment, ["latents.n=7", "run.max_cost_usd=null", "scorers.detection.with.batch=2", "tags=[a, b]", "tags.1=false"])))  # fmt: skip
    assert document.data["latents"] == {"n": 7}
    assert document.data["scorers"]["detection"]["with"]["batch"] == 2
    assert document.data["tags"] == ["a", False]


def test_override_and_include_reach_into_a_part_in_short_form(tmp_path):
    base = GOOD + "baselines: [shuffled_explanation, {use: random_sae, with: {k: 8}}]\nllms: {judge: {model: m}}\n"
    changes = ["explainer.with.n=3", "explainer.llm=judge", "baselines.0.when={latents: 2}", "baselines.1.with.k=4"]
    changes += ["source.with.coder=random_sae", "source.with.coder.with.k=2"]
    spec = parse(override(read(tmp_path, base), dict(map(parse_assignment, changes))))
    assert (spec.explainer.use, spec.explainer.with_, spec.explainer.llm) == ("top_tokens", {"n": 3}, "judge")
    assert spec.baselines[0].use == "shuffled_explanation" and spec.baselines[0].when.latents == 2
    assert spec.baselines[1].with_ == {"k": 4}
    assert spec.source.with_["coder"] == {"use": "random_sae", "with": {"k": 2}}
    child = read(tmp_path, "include: [base.yaml]\nexplainer: {with: {n: 4}}\n", base=base)
    assert plain(child.data["explainer"]) == {"use": "top_tokens", "with": {"n": 4}}
    assert override(child, {"explainer.use": "default"}).data["explainer"]["use"] == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("explainer.wiht.n=3", "explainer is a single value, which has no 'wiht', did you mean 'with'?"),
        ("task.x=1", "task is a single value, which has no 'x'"),
        ("tags.2=x", "tags is a list with entries 0 to 1, not 2"),
        ("tags.a.b=x", "tags is a list with entries 0 to 1, not 'a'"),
        ("exclude.0=x", "exclude is a list with no entries; set the whole list"),
    ],
)
def test_override_without_a_place_says_what_is_there(tmp_path, text, said):
    with pytest.raises(SpecError) as error:
        override(read(tmp_path, GOOD + "tags: [a, b]\nexclude: []\n"), dict([parse_assignment(text)]))
    assert said in str(error.value) and "Located" not in str(error.value)


@pytest.mark.parametrize("text", ["novalue", "=3", "a=[1", "task.x=1"])
def test_bad_override_is_one_clear_sentence(tmp_path, text):
    with pytest.raises(SpecError, match="--set"):
        override(read(tmp_path, GOOD), dict([parse_assignment(text)]))


def test_mistake_of_an_override_says_that_it_came_from_the_command_line(tmp_path):
    with pytest.raises(SpecError, match=r"--set run\.seed: should be a valid integer.*got 'x'"):
        parse(override(read(tmp_path, GOOD), {"run.seed": "x"}))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["use", "with", "task", "run", "source", "scorers", "matrix", "exclude", "llms", "a"]), x, max_size=4), max_leaves=20))  # fmt: skip
def test_any_data_is_either_a_spec_or_a_list_of_mistakes(tmp_path_factory, value):
    import yaml

    path = tmp_path_factory.mktemp("fuzz") / "s.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    try:
        for _, document in cells_of(read_document(path, lambda r, f: f.parent / r)):
            parse(document)
    except SpecError as error:
        assert error.problems


# --- specs as objects ---


def test_spec_is_built_changed_and_run_without_yaml(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    spec = saeval.Spec(
        saeval=1, task="built", version="1.0",
        source=saeval.PartSpec(use="synthetic", with_={"n_latents": 6, "documents": 60}),
        latents={"n": 3, "min_windows": 20},
        sampler={"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}},
        explainer="top_tokens",
        scorers={"detection": None},
        llms={"judge": saeval.RoleSpec(model="scripted/no", reply="[0]")},
    )  # fmt: skip
    changed = spec.changed({"latents.n": 2, "run.seed": 5})
    assert (spec.latents.n, changed.latents.n, changed.run.seed) == (3, 2, 5)
    run = saeval.run(changed, out=tmp_path / "run")
    assert run.cells[0].counts["sampled"] == 2 and run.seed == 5
    again = saeval.Spec.read(tmp_path / "run" / "spec.yaml")
    assert load_task(again, registry=Registry()).sha == load_task(changed, registry=Registry()).sha == run.spec_sha
    with pytest.raises(saeval.SpecError, match=r"latents.nn: no such key, did you mean 'n'"):
        spec.changed({"latents.nn": 2})


def test_written_spec_runs_from_any_folder_also_where_paths_have_no_slash(tmp_path):
    for name in ("words.txt", "mine.py"):
        (tmp_path / name).write_text("text")
    for name in ("random", "store"):
        (tmp_path / name).mkdir()
    text = "source: {path: store, words: words.txt}\nsampler: random\nscorers: {mine: {use: 'mine.py:Mine'}}\n"
    about = "Explanations of either kind, true and/or false. " * 10
    written = plain(read(tmp_path, f"{text}description: {about!r}\n").data, absolute=True)
    assert written["description"] == about
    names = "task: words.txt\nmatrix: {data: [words.txt, {id: words.txt, path: store}], place: [./words.txt]}\n"
    kept = plain(read(tmp_path, names).data, absolute=True)
    assert kept["task"] == "words.txt" and kept["matrix"]["data"] == ["words.txt", {"id": "words.txt", "path": "store"}]
    assert kept["matrix"]["place"] == [str(tmp_path / "words.txt")]
    assert written["source"] == {"path": str(tmp_path / "store"), "words": str(tmp_path / "words.txt")}
    assert written["sampler"] == "random"
    assert written["scorers"]["mine"]["use"] == f"{tmp_path / 'mine.py'}:Mine"


def test_written_spec_has_the_paths_that_options_made_of_names_without_a_slash(tmp_path, monkeypatch):
    for name in ("topk", "lens", "ratings", "words.txt"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    text = """
        saeval: 1
        task: small
        version: "1.0"
        matrix:
          sae: [{id: topk, coder: {use: sae_lens, with: {path: topk}}}]
          data: [words.txt]
        source:
          use: transformers
          with: {model: topk, hookpoint: h, coder: "${matrix.sae.coder}", corpus: {path: "${matrix.data}"}}
        explainer: {use: lens, with: {tuned_lens: lens}}
        scorers: {human: }
    """
    (tmp_path / "spec.yaml").write_text(text)
    given = dict([parse_assignment("scorers.human.with.path=ratings")])
    task = load_task(tmp_path / "spec.yaml", registry=Registry(), overrides=given, check=False)
    written = plain(task.resolved, absolute=True)
    assert written["explainer"]["with"]["tuned_lens"] == str(tmp_path / "lens")
    assert written["scorers"]["human"]["with"]["path"] == str(tmp_path / "ratings")
    (sae,) = written["matrix"]["sae"]
    assert (sae["id"], sae["coder"]["with"]["path"]) == ("topk", str(tmp_path / "topk"))
    assert written["matrix"]["data"] == [
        {"id": "words.txt", "path": str(tmp_path / "words.txt")}
    ]  # the cell's name stays
    assert written["source"]["with"]["corpus"]["path"] == "${matrix.data.path}"
    assert written["source"]["with"]["model"] == "topk"  # a name on the hub
    assert plain(task.resolved)["matrix"]["sae"][0]["coder"]["with"]["path"] == "topk"


def test_written_spec_has_the_paths_of_classes_and_files_in_a_matrix_and_the_names_of_cells(tmp_path, monkeypatch):
    code = (
        "from saeval_plugins.scorers.detection import Detection\n\n\nclass {0}(Detection):\n    name = '{0}'.lower()\n"
    )
    (tmp_path / "mine.py").write_text(code.format("One") + code.format("Two"))
    text = """
        saeval: 1
        task: small
        version: "1.0"
        matrix: {by: ["mine.py:One", "mine.py:Two", "./mine.py:Two"], how: [{id: one, scorer: "mine.py:One"}]}
        exclude: [{by: "mine.py:Two"}, {by: "./mine.py:Two"}]
        source: {use: synthetic}
        sampler: {use: random}
        explainer: default
        scorers: {a: {use: "${matrix.by}"}, b: {use: "${matrix.how.scorer}"}}
        llms: {explainer: {model: scripted/no, reply: "0"}, judge: {model: scripted/no, reply: "[0]"}}
    """
    (tmp_path / "spec.yaml").write_text(text)
    task = load_task(tmp_path / "spec.yaml", registry=Registry())
    written = plain(task.resolved, absolute=True)
    assert written["matrix"]["how"] == [{"id": "one", "scorer": f"{tmp_path}/mine.py:One"}]
    assert written["matrix"]["by"][1] == {"id": "mine.py:Two", "path": f"{tmp_path}/mine.py:Two"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "spec.yaml").write_text(yaml.safe_dump(written))
    again = load_task(tmp_path / "elsewhere" / "spec.yaml", registry=Registry())
    assert [cell.name for cell in again.cells] == [cell.name for cell in task.cells] == ["by=mine.py_One,how=one"]


def test_findings_of_a_written_spec_name_the_same_cells(tmp_path):
    for name in ("short.jsonl", "long.jsonl"):
        (tmp_path / name).write_text('{"latent": 0, "explanation": "x"}\n')
    text = """
        saeval: 1
        task: small
        version: "1.0"
        matrix: {made: [short.jsonl, long.jsonl, ./long.jsonl], size: [{id: long.jsonl, n: 8}]}
        source: {use: synthetic}
        sampler: {use: random, with: {window: "${matrix.size.n}"}}
        explainer: {use: precomputed, with: {path: "${matrix.made}"}}
        scorers: {detection: }
        llms: {judge: {model: scripted/no, reply: "[0]"}}
        findings:
        - {claim: a, score: detection, is: above, cells: {made: short.jsonl}, than_cells: {made: ./long.jsonl}}
        - {claim: b, score: detection, is: above, cells: {made: [long.jsonl, short.jsonl], size: long.jsonl}}
    """
    (tmp_path / "spec.yaml").write_text(text)
    task = load_task(tmp_path / "spec.yaml", registry=Registry())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "spec.yaml").write_text(yaml.safe_dump(plain(task.resolved, absolute=True)))
    again = load_task(tmp_path / "elsewhere" / "spec.yaml", registry=Registry())
    assert [cell.axes for cell in again.cells] == [cell.axes for cell in task.cells]
    assert again.findings == task.findings
    assert again.findings[0].than_cells == {"made": "./long.jsonl"}


def test_path_of_a_language_model_is_relative_to_its_spec_and_absolute_in_the_written_one(tmp_path, monkeypatch):
    for folder in ("specs", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "said.jsonl").write_text('{"key": "0", "text": "x"}\n')
    (tmp_path / "specs" / "spec.yaml").write_text(f"{GOOD}llms: {{judge: {{model: replay/./said.jsonl}}}}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for llms, folder in (({}, "specs"), ({"judge": "replay/./said.jsonl"}, "elsewhere")):
        task = load_task(tmp_path / "specs" / "spec.yaml", registry=Registry(), llms=llms)
        file = str(tmp_path / folder / "said.jsonl")
        assert task.roles["judge"].part.plugin.model == file
        assert task.roles["judge"].model == "replay/./said.jsonl"
        assert plain(task.resolved, absolute=True)["llms"]["judge"]["model"] == f"replay/{file}"


def test_shipped_spec_read_as_an_object_means_the_same():
    read, shipped = (
        load_task(t, registry=Registry(), check=False) for t in (saeval.Spec.read("quickstart"), "quickstart")
    )
    for cell, other in zip(read.cells, shipped.cells, strict=True):
        assert cell.name == other.name and cell.scorers.keys() == other.scorers.keys()
        for part in ("source", "sampler", "explainer"):
            ours, theirs = getattr(cell, part), getattr(other, part)
            ours, theirs = getattr(ours, "part", ours), getattr(theirs, "part", theirs)
            assert ours.plugin.fingerprint() == theirs.plugin.fingerprint()
    assert (read.run, read.rank_by) == (shipped.run, shipped.rank_by)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{sea: b}", "the matrix has no axis 'sea', did you mean 'sae'?; it has: sae, layer"),
        ("{sae: z}", "the axis sae has no 'z'; it has: a, b"),
        ("{sae: b, layer: 5}", "the axis layer has no '5'; it has: 3, 4"),
    ],
)
def test_an_exclusion_that_excludes_nothing_is_a_mistake_with_its_line(tmp_path, entry, said):
    text = f"{GOOD}matrix:\n  sae: [{{id: a, path: x/y}}, {{id: b, path: z}}]\n  layer: [3, 4]\nexclude:\n  - {entry}\n"
    line = text[: text.index("  - {")].count("\n") + 1
    (found,) = problems(tmp_path, text)
    assert f"spec.yaml:{line}: " in found and said in found


def test_two_tasks_of_a_group_with_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(GOOD.replace("detection: {with: {batch: 5}}", "embedding: {}"))
    (tmp_path / "g.yaml").write_text("saeval: 1\ngroup: g\ntasks: [./a.yaml, ./b.yaml]\n")
    for command in ("validate", "plan", "run"):
        done = CliRunner().invoke(main, [command, str(tmp_path / "g.yaml")])
        assert (
            done.exit_code == 2
            and "a.yaml" in done.output
            and "b.yaml are both called" in " ".join(done.output.split())
        )
