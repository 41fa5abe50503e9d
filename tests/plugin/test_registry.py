"""Plugin packages are found by metadata, imported when named, and isolated when broken: every trap of pluggy's."""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap

import pytest

from saeval import PluginError
from saeval.plugin.registry import Registry, options_error

SCORER = """
from saeval.plugin import AUROC, Score, Scorer, hookimpl

class Good(Scorer):
    name = "good"
    metrics = (AUROC,)
    batch: int = 5

    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 0.5})
"""
HOOK = """
@hookimpl
def saeval_scorers():
    return [Good]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a distribution with one module on the path, with the metadata pip would write."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = []

    def install(name, code=SCORER + HOOK, *, version="1.0", requires=("saeval",), entry=None, folder=None):
        place = tmp_path / folder if folder else tmp_path
        place.mkdir(exist_ok=True)
        if folder:
            monkeypatch.syspath_prepend(str(place))
        module = name.replace("-", "_").replace(".", "_").lower()
        modules.append(module)
        (place / f"{module}.py").write_text(textwrap.dedent(code))
        info = place / f"{module}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        (info / "entry_points.txt").write_text(f"[saeval]\n{entry or module} = {module}\n")
        files = [place / f"{module}.py", *info.iterdir(), info / "RECORD"]
        (info / "RECORD").write_text("".join(f"{file.relative_to(place)},,\n" for file in files))
        importlib.invalidate_caches()  # the folder may have been listed in the same tick of the clock
        return info

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def reason(namespace="acme"):
    (row,) = [r for r in Registry().plugins() if r.namespace == namespace]
    assert row.status == "broken"
    return row.reason


def test_third_party_is_named_by_its_distribution(install):
    install("saeval-acme")
    loaded = Registry().get("scorer", "acme/good")
    assert (loaded.id, loaded.distribution, loaded.version) == ("acme/good", "saeval-acme", "1.0")
    assert "acme/good" in [p.id for p in Registry().names("scorer")]


def test_bare_name_is_always_a_built_in(install):
    install("saeval-acme")
    with pytest.raises(
        PluginError, match=r"unknown scorer 'good', did you mean 'acme/good'\? \(`saeval list scorers` shows all\)"
    ):
        Registry().get("scorer", "good")


def test_same_entry_point_name_in_two_distributions_loads_both(install):
    install("saeval-acme", entry="plugin")
    install("saeval-other", entry="plugin")
    registry = Registry()
    assert registry.get("scorer", "acme/good").cls is not registry.get("scorer", "other/good").cls


def test_built_ins_import_no_third_party(install):
    install("saeval-acme", "raise RuntimeError('must not be imported')")
    registry = Registry()
    registry.get("scorer", "detection")
    registry.find("llm", "hf")
    assert "saeval_acme" not in sys.modules


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import gpt4all_is_not_there", "ModuleNotFoundError: No module named 'gpt4all_is_not_there'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('of\\n\\ntwo lines')", "ValueError: of two lines"),
        ("class Panic(BaseException): ...\nraise Panic('in Rust')", "Panic: in Rust"),
        (SCORER.replace("batch: int", "batch") + HOOK, "PydanticUserError: A non-annotated attribute was detected: `batch = 5`"),
        (SCORER, "it provides nothing; is @hookimpl missing?"),
        (SCORER + "@hookimpl\ndef saeval_scorers():\n    [Good]", "saeval_scorers returned None; return a list"),
        (SCORER + HOOK + "@hookimpl\ndef saeval_task_dirs():\n    return [3]", "saeval_task_dirs returned '3', which is not a folder"),
        (SCORER + HOOK + "@hookimpl\ndef saeval_task_dirs():\n    return ['gone']", "returned 'gone', which is not a folder; is it missing from the wheel?"),
        (SCORER + "@hookimpl\ndef saeval_scorers(registry):\n    return [Good]", "a hook takes no arguments"),
        (SCORER + "@hookimpl\ndef saeval_scorrers():\n    return [Good]", "a hook saeval_scorrers that saeval does not have; it may need a newer saeval"),
        (SCORER + "@hookimpl\ndef saeval_scorers():\n    yield Good\n    raise ValueError('late')", "saeval_scorers raised ValueError: late"),
        (SCORER + "@hookimpl\ndef saeval_scorers():\n    return Good", "return a list"),
        (SCORER + "@hookimpl\ndef saeval_scorers():\n    return [Good()]", "return classes, not instances"),
        (SCORER + "@hookimpl\ndef saeval_explainers():\n    return [Good]", "Good is not an explainer"),
        (SCORER + "@hookimpl\ndef saeval_scorers():\n    return [Good, Good]", "scorer 'acme/good' is defined twice"),
        (SCORER.replace('name = "good"', 'name: str = "good"') + HOOK, "`name` has an annotation, which makes it an option"),
        (SCORER.replace("metrics =", "metrics: tuple =") + HOOK, "Good: `metrics` has an annotation, which makes it an option; write `metrics = …`"),
        (SCORER.replace("batch: int", "reads_explanation: bool") + HOOK, "`reads_explanation = …` to set what saeval.Scorer declares, or rename the option"),
        (SCORER.replace("batch: int", "cautions: int") + HOOK, "Good: `cautions` is a method of saeval.Scorer; rename the option"),
        (SCORER.replace("    async def", "    async def needs(self): ...\n\n    async def") + HOOK, "Good: `needs` is async, but nothing awaits it; write `def needs`"),
        (SCORER.replace(", context", "") + HOOK, "Good: `score` cannot be called with the arguments it gets; write `async def score(self, explanation, examples, context)`"),
        (SCORER.replace("context)", "context, more)") + HOOK, "Good: `score` cannot be called with the arguments it gets"),
        (SCORER.replace("    async def", "    def cautions(self, values):\n        return []\n\n    async def") + HOOK, "write `def cautions(self, values, latents)`"),
        (SCORER.replace("async def", "def") + HOOK, "Good: `score` is not async, but its result is awaited; write `async def score("),
        (SCORER.replace("async def", "def").replace("Score(values", "Score.failed(str").replace("{", "dict(x=").replace(": 0.5}", ")") + HOOK, "Good: `score` is not async"),
        (SCORER + "\nundefined\n" + HOOK, "NameError: name 'undefined' is not defined (saeval_acme.py:12)"),
        ("import json\njson.loads('{')", "(saeval_acme.py:2)"),
        (SCORER.replace('name = "good"', "pass") + HOOK, "Good has no name"),
        (SCORER.replace('"good"', '"Good-1"') + HOOK, "'Good-1' is not a valid name"),
        (SCORER.replace("async def score", "async def scores") + HOOK, "Good does not implement score"),
    ],
)  # fmt: skip
def test_broken_package_is_a_row_with_the_reason_and_an_error_only_where_it_is_used(install, code, expected):
    install("saeval-acme", code)
    install("saeval-fine")
    assert expected in reason()
    registry = Registry()
    assert registry.get("scorer", "fine/good")
    with pytest.raises(PluginError, match="saeval-acme 1.0 is installed but could not be used"):
        registry.get("scorer", "acme/good")


CALLABLE = """
import functools
from saeval.plugin import LLM, AUROC, Reply, Score, Scorer, hookimpl

def with_context(method):
    @functools.wraps(method)
    def score(self, explanation, examples, context):
        return method(self, explanation, examples)
    return score
class Wrapped(Scorer):
    name = "wrapped"
    @with_context
    async def score(self, explanation, examples):
        return Score(values={"auroc": 0.5})
class AnyArguments(Scorer):
    name = "any_arguments"
    async def score(self, *arguments, **named):
        return Score(values={"auroc": 0.5})
class OtherNames(Scorer):
    name = "other_names"
    async def score(self, text, windows, lent, /, more=3):
        return Score(values={"auroc": 0.5})
class Static(Scorer):
    name = "static"
    @staticmethod
    async def score(explanation, examples, context):
        return Score(values={"auroc": 0.5})
class Refusing(LLM):
    name = "refusing"
    async def complete(self, request):
        return Reply("yes")
@hookimpl
def saeval_scorers():
    return [Wrapped, AnyArguments, OtherNames, Static]
@hookimpl
def saeval_llms():
    return [Refusing]
"""


def test_methods_that_can_be_called_and_awaited_are_accepted_however_they_are_written(install):
    install("saeval-acme", CALLABLE)
    names = {name for _, name in Registry().load("acme")}
    assert names == {"wrapped", "any_arguments", "other_names", "static", "refusing"}


def test_error_keeps_what_broke_the_package_as_its_cause(install):
    install("saeval-acme", "1 / 0")
    with pytest.raises(PluginError) as error:
        Registry().load("acme")
    assert isinstance(error.value.__cause__.__cause__, ZeroDivisionError)


def test_interrupt_while_a_package_is_imported_is_not_swallowed(install):
    install("saeval-acme", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry().plugins()


def test_hook_that_yields_works(install):
    install("saeval-acme", SCORER + "@hookimpl\ndef saeval_scorers():\n    yield Good")
    assert Registry().get("scorer", "acme/good")


def test_two_distributions_of_one_namespace_are_both_refused_by_name(install):
    install("saeval-acme")
    install("acme", folder="second")
    rows = [r for r in Registry().plugins() if r.namespace == "acme"]
    assert {r.status for r in rows} == {"broken"} and len(rows) == 2
    assert "acme 1.0 and saeval-acme 1.0 both claim the namespace 'acme'" in rows[0].reason


@pytest.mark.parametrize("name", ["saeval-saeval", "saeval-local"])
def test_no_third_party_takes_a_namespace_that_saeval_uses_itself(install, name):
    install(name)
    registry = Registry()
    assert registry.get("scorer", f"{name}/good") and registry.get("scorer", "detection")
    assert registry.load("saeval").keys() == Registry(["*"]).load("saeval").keys()


def test_spelling_of_the_distribution_does_not_change_the_namespace(install):
    install("Saeval_Acme.Labs")
    assert Registry().get("scorer", "acme-labs/good").distribution == "Saeval_Acme.Labs"


def test_remains_of_an_interrupted_uninstall_are_passed_over(install):
    (install("saeval-acme") / "METADATA").unlink()
    (install("saeval-other") / "METADATA").write_text("Metadata-Version: 2.1\nVersion: 1.0\n")
    install("saeval-fine")
    assert {r.namespace: r.status for r in Registry().plugins()} == {"saeval": "ok", "fine": "ok"}


def test_package_that_needs_another_saeval_is_refused(install):
    install("saeval-acme", requires=("saeval>=0.9", "numpy"), version="0.3.0")
    assert reason() == "acme 0.3.0 needs saeval>=0.9, this is saeval 0.1.0"


@pytest.mark.parametrize("how", ["argument", "environment", "all", "distribution"])
def test_disabled_package_is_skipped(install, monkeypatch, how):
    install("saeval-acme", "raise RuntimeError('must not be imported')")
    if how != "argument":
        names = {"environment": "other,Acme", "all": "*", "distribution": "saeval-acme"}
        monkeypatch.setenv("SAEVAL_DISABLED_PLUGINS", names[how])
    registry = Registry(["acme"] if how == "argument" else [])
    assert [r.status for r in registry.plugins() if r.namespace == "acme"] == ["disabled"]
    with pytest.raises(PluginError, match="disabled"):
        registry.get("scorer", "acme/good")
    assert registry.get("scorer", "detection")


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("scorer", "detecton", "detection"),
        ("explainer", "defualt", "default"),
        ("sampler", "quantile", "quantiles"),
        ("coder", "sae_lense", "sae_lens"),
    ],
)
def test_misspelt_name_gets_a_suggestion(kind, name, hint):
    with pytest.raises(PluginError, match=f"unknown {kind} '{name}', did you mean '{hint}'"):
        Registry().get(kind, name)


def test_plugin_of_another_kind_is_named_with_the_article_of_its_kind(install):
    for kind, name, said in (("scorer", "replay", "it is an llm"), ("llm", "detection", "it is a scorer")):
        with pytest.raises(PluginError, match=rf"unknown {kind} '{name}'; {said} "):
            Registry().get(kind, name)
    install("acme", SCORER + "@hookimpl\ndef saeval_llms():\n    return [Good]")
    assert "Good is not an llm: it does not derive from saeval.LLM" in reason()


def test_single_file_is_loaded_with_its_hash(tmp_path):
    (tmp_path / "mine.py").write_text(SCORER)
    loaded = Registry().get("scorer", "./mine.py:Good", base=tmp_path)
    assert loaded.id == "local/good" and len(loaded.sha) == 64
    (tmp_path / "mine.py").write_text(SCORER + "\n# changed\n")
    assert Registry().get("scorer", "./mine.py:Good", base=tmp_path).sha != loaded.sha


NEIGHBOUR = SCORER.replace("5\n", "LIMIT\n")


def batch_of(folder):
    loaded = Registry().get("scorer", "./mine.py:Good", base=folder)
    return loaded.cls().batch, loaded.code


def test_files_beside_a_single_file_are_part_of_it_also_through_each_other(tmp_path):
    (tmp_path / "mine.py").write_text("from neighbour_limits import LIMIT\n" + NEIGHBOUR)
    (tmp_path / "neighbour_limits.py").write_text("import neighbour_package.deep as deep\n\nLIMIT = deep.LIMIT\n")
    (tmp_path / "neighbour_package").mkdir()
    (tmp_path / "neighbour_package" / "__init__.py").write_text("")
    (tmp_path / "not_imported.py").write_text("LIMIT = 1\n")
    path, codes = list(sys.path), set()
    for limit in (5, 60, 700):
        (tmp_path / "neighbour_package" / "deep.py").write_text(f"LIMIT = {limit}\n")
        batch, code = batch_of(tmp_path)
        assert batch == limit and code == batch_of(tmp_path)[1]
        codes.add(code)
    assert len(codes) == 3 and sys.path == path
    (tmp_path / "not_imported.py").write_text("LIMIT = 2\n")
    assert batch_of(tmp_path)[1] in codes


def test_two_single_files_with_neighbours_of_one_name_get_their_own(tmp_path):
    for limit in (5, 6):
        folder = tmp_path / str(limit)
        folder.mkdir()
        (folder / "mine.py").write_text("from neighbour_twice import LIMIT\n" + NEIGHBOUR)
        (folder / "neighbour_twice.py").write_text(f"LIMIT = {limit}\n")
    assert [batch_of(tmp_path / name)[0] for name in ("5", "6", "5")] == [5, 6, 5]


def test_single_file_that_imports_nothing_beside_it_has_its_own_hash_only(tmp_path):
    (tmp_path / "json.py").write_text("")  # the standard library's is imported
    (tmp_path / "mine.py").write_text("import json, numpy\n" + SCORER)
    assert batch_of(tmp_path) == (5, None)


def test_misspelt_name_of_a_third_party_gets_a_suggestion(install):
    install("saeval-acme")
    with pytest.raises(PluginError, match="unknown scorer 'acme/god', did you mean 'acme/good'"):
        Registry().get("scorer", "acme/god")


def test_spec_that_names_a_broken_package_is_refused_with_the_reason(install):
    from saeval._util.errors import SpecError
    from saeval.task.loader import load_task

    install("saeval-acme", "import gpt4all_is_not_there")
    spec = {
        "saeval": 1, "task": "t", "version": "1", "source": {"use": "synthetic"}, "explainer": "top_tokens",
        "scorers": {"good": {"use": "acme/good"}},
    }  # fmt: skip
    with pytest.raises(SpecError, match="saeval-acme 1.0 .* No module named 'gpt4all_is_not_there'"):
        load_task(spec, registry=Registry(), check=False)


def test_single_file_that_was_just_edited_is_not_run_from_old_bytecode(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for batch in (5, 6, 7):
        (tmp_path / "mine.py").write_text(SCORER.replace("5\n", f"{batch}\n"))
        assert Registry().get("scorer", "./mine.py:Good", base=tmp_path).cls().batch == batch
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./nowhere.py:Good", "cannot be read"),
        ("./mine.py", "name the class too, as in './mine.py:MyClass'"),
        ("./mine.py:Goood", "mine.py has no class 'Goood', did you mean 'Good'"),
        ("./mine.py:helper", "classes, not instances"),
        ("./bad.py:X", "SyntaxError"),
        ("./late.py:X", r"NameError: name 'undefined' is not defined \(late.py:2\)"),
        ("./misuse.py:X", r"JSONDecodeError: .* \(misuse.py:2\)"),
        ("./user.py:X", r"NameError: name 'undefined' is not defined \(late.py:2\)"),
    ],
)
def test_single_file_that_does_not_work_is_one_clear_sentence(tmp_path, name, expected):
    (tmp_path / "mine.py").write_text(SCORER + "\ndef helper(): ...\n")
    (tmp_path / "bad.py").write_text("def (")
    (tmp_path / "late.py").write_text("\nundefined\n")
    (tmp_path / "misuse.py").write_text("import json\njson.loads('{')\n")
    (tmp_path / "user.py").write_text("import late\n")
    with pytest.raises(PluginError, match=expected):
        Registry().get("scorer", name, base=tmp_path)


def test_wrong_options_are_told_with_what_there_is():
    from pydantic import ValidationError

    detection = Registry().get("scorer", "detection").cls
    with pytest.raises(ValidationError) as error:
        detection(batsh=3, batch="five", mode="guess")
    messages = dict(options_error(detection, error.value))
    assert messages[("batsh",)].startswith("no such option, did you mean 'batch'?; detection has: batch, mode")
    assert messages[("batch",)] == "should be a valid integer, unable to parse string as an integer (got 'five')"
    assert "should be 'auto', 'list' or 'probability' (got 'guess')" in messages[("mode",)]


def test_wrong_option_within_an_option_is_told_alike():
    from pydantic import ValidationError

    sampler = Registry().get("sampler", "random").cls
    with pytest.raises(ValidationError) as error:
        sampler(non_activating={"us": "random"})
    ((loc, message),) = options_error(sampler, error.value)
    assert loc == ("non_activating", "us")
    assert message == "no such option, did you mean 'use'?; non_activating has: use, n"


def test_option_that_the_plugins_own_init_assigns_is_told_with_the_remedy():
    from pydantic import ValidationError

    from saeval.plugin import Tracker

    class Own(Tracker):
        name = "own"

        def __init__(self, k=3):
            self.k = k

        def track(self, result, folder): ...

    with pytest.raises(ValidationError) as error:
        Own()
    ((_, message),) = options_error(Own, error.value)
    assert message == "is assigned by the plugin's own __init__; declare options as fields, such as `k: int = 3`"


def test_missing_option_is_told():
    from pydantic import ValidationError

    llm = Registry().get("llm", "openai_compatible").cls
    with pytest.raises(ValidationError) as error:
        llm()
    assert (("model",), "is missing") in options_error(llm, error.value)


def test_package_installed_while_the_process_runs_is_found_and_one_removed_is_gone(install):
    assert "acme" not in Registry().namespaces
    info = install("saeval-acme")
    assert Registry().get("scorer", "acme/good").version == "1.0"
    shutil.rmtree(info)
    assert "acme" not in Registry().namespaces
    install("saeval-acme", version="2.0")
    assert Registry().get("scorer", "acme/good").version == "2.0"
