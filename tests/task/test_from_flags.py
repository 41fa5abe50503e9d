"""One line from SAEs of one's own to a board, and the spec that the line stands for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from command import run_command
from fake_server import fake_server
from tiny import TEXT, tiny_model, tiny_sae

from saeval._util import InputError
from saeval.plugin.registry import Registry
from saeval.task import TaskFlags, load_task, spec_from_flags


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    tiny_model(folder / "m")
    tiny_sae(folder / "runs" / "one" / "final")
    tiny_sae(folder / "runs" / "two" / "final", seed=1)
    (folder / "text.txt").write_text("\n\n".join(TEXT[i:] + TEXT[:i] for i in range(60)))
    return folder


def reply(messages):
    text = messages[-1]["content"]
    windows = len(re.findall(r"^Window \d+:", text, re.MULTILINE))
    judged = "Explanation:" in text and windows
    return str([i % 2 for i in range(windows)]) if judged else "Explanation: words about ships"


def saeval(folder, *arguments, code=0, **options):
    env = {"SAEVAL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return run_command(*arguments, cwd=folder, env=env, code=code, **options)


def flags(place, **changes):
    saes = [f"{place}/runs/one/final", f"{place}/runs/two/final"]
    given = {"model": f"{place}/m", "saes": saes, "text": f"{place}/text.txt", "judge": "openai/gpt-4o-mini"}
    return TaskFlags(**{**given, **changes})


def test_one_command_compares_two_saes_and_its_spec_runs_again(place):
    with fake_server(reply) as server:
        line = ["--model", "m", "--sae", "runs/one/final", "--sae", "second=runs/two/final", "--text", "text.txt"]
        line += ["--judge", "openai_compatible/judge", "--api-base", server.url, "--latents", 3]
        line += ["--baseline", "shuffled_explanation", "--set", "run.seed=3"]
        first = saeval(place, "run", *line)
        assert "detection" in first.stdout and "fuzzing" in first.stdout
        assert re.search(r"^\S+ +second ", first.stdout, re.MULTILINE)
        (run,) = (place / "saeval-runs").iterdir()
        assert f"saeval-runs/{run.name}/spec.yaml" in first.stdout
        spec = yaml.safe_load((run / "spec.yaml").read_text())
        assert spec["run"]["seed"] == 3 and [sae["id"] for sae in spec["matrix"]["sae"]] == ["final", "second"]
    assert load_task(run / "spec.yaml", registry=Registry()).sha[:6] == run.name[-6:]  # run again, it is the same run


def test_task_is_an_argument_or_an_option(place):
    for arguments in (["quickstart"], ["--task", "quickstart"]):
        assert json.loads(saeval(place, "validate", *arguments, "--json").stdout)["task"] == "quickstart"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give the name of a task (`saeval list` lists them), or --model, --sae, --text and --judge"),
        (["quickstart", "--task", "paper"], "name only one task: quickstart or --task paper"),
        (["quickstart", "--sae", "x"], "--sae describes a new task; to change 'quickstart' use --set"),
        (["--model", "m", "--text", "text.txt"], "--sae is missing"),
        (["--model", "m", "--sae", "runs", "--text", "text.txt", "--judge", "openai/x"], "which contains one, two"),
        (["--model", "m", "--sae", "nowhere", "--text", "text.txt", "--judge", "openai/x"], "--sae nowhere: no such folder"),
        (["--model", "m", "--sae", "runs/one/final", "--text", "no.txt", "--judge", "openai/x"], "--text no.txt: no such file"),
        (["--model", "m", "--sae", "runs/one/final", "--text", "text.txt"], "give --judge MODEL"),
        (["--model", "m", "--sae", "runs/one/final", "--text", "text.txt", "--judge", "openai/x", "--scorers", "detecton"], "did you mean 'detection'"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_go_together_is_said(place, arguments, sentence):
    assert sentence in saeval(place, "validate", *arguments, code=2).stderr


def test_scorer_of_another_role_than_the_judges_asks_for_no_judge(place):
    spec = spec_from_flags(flags(place, judge=None, explainer="top_tokens", scorers=["surprisal"]), Registry())
    assert spec["llms"] == {} and [*spec["scorers"]] == ["surprisal"]


def test_new_task_asks_for_what_flags_do_not_say_and_writes_a_valid_spec(place):
    answers = "m\nruns/one/final runs/two/final\ntext.txt\nopenai_compatible/judge\n"
    made = saeval(place, "new", "task", "mine", "--api-base", "http://127.0.0.1:9/v1", input=answers)
    assert "mine.yaml" in made.stdout
    row = json.loads(saeval(place, "validate", "mine.yaml", "--json").stdout)
    assert row["task"] == "mine" and {"sae=one-final", "sae=two-final"} <= set(row["cells"])
    assert "already exists" in saeval(place, "new", "task", "mine", code=2).stderr


def test_ids_are_as_short_as_they_can_be_while_they_differ(place):
    spec = spec_from_flags(flags(place), Registry())
    assert [sae["id"] for sae in spec["matrix"]["sae"]] == ["one-final", "two-final"]


@pytest.mark.parametrize(
    ("name", "coder"),
    [
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", {"use": "gemma_scope", "with": {"repo": "google/gemma-scope-2b-pt-res", "folder": "layer_20/width_16k/average_l0_71"}}),
        ("EleutherAI/sae-llama-3-8b-32x/layers.10", {"use": "sparsify", "with": {"repo": "EleutherAI/sae-llama-3-8b-32x", "folder": "layers.10"}}),
    ],
)  # fmt: skip
def test_hub_ids_are_read_by_the_coder_that_knows_them(place, name, coder):
    (sae,) = spec_from_flags(flags(place, saes=[name]), Registry())["matrix"]["sae"]
    assert sae["coder"] == coder


def test_releases_that_sae_lens_lists_are_read_by_it(place):
    pytest.importorskip("sae_lens", reason="it lists the releases")
    (sae,) = spec_from_flags(flags(place, saes=["gpt2-small-res-jb/blocks.7.hook_resid_pre"]), Registry())["matrix"][
        "sae"
    ]
    assert sae["coder"] == {
        "use": "sae_lens",
        "with": {"release": "gpt2-small-res-jb", "sae_id": "blocks.7.hook_resid_pre"},
    }


def test_explainers_and_scorers_without_a_model_need_none(place):
    spec = spec_from_flags(flags(place, judge=None, explainer="top_tokens", scorers=["embedding"]), Registry())
    assert spec["llms"] == {} and spec["explainer"] == {"use": "top_tokens"}
    assert load_task(spec, registry=Registry(), check=False).cells[0].scorers.keys() == {"embedding"}


def test_a_name_that_nobody_reads_says_how_to_write_one(place):
    with pytest.raises(InputError, match="CODER:OWNER/REPOSITORY/FOLDER"):
        spec_from_flags(flags(place, saes=["somebody/something"]), Registry())


def test_task_names_complete_in_the_shell(place):
    words = {"COMP_WORDS": "saeval run quick", "COMP_CWORD": "2", "_SAEVAL_COMPLETE": "bash_complete"}
    program = "import sys; sys.argv = ['saeval']; from saeval.cli import main; main(prog_name='saeval')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert "plain,quickstart" in done.stdout.splitlines() and "plain,quickstart-live" in done.stdout.splitlines()
