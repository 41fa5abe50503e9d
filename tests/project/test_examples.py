"""The example packages, as their users get them: installed into a fresh environment, checked, and run together."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from environments import EXAMPLES, sh
from root import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", EXAMPLES)
def test_everything_in_the_example_keeps_its_contract(installed, tmp_path, name):
    checked = json.loads(sh(installed, "-m", "saeval", "plugins", "check", name, "--json", cwd=tmp_path))
    assert checked and {row["status"] for row in checked} == {"ok"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_own_tests_of_the_example_pass_on_what_is_installed(installed, tmp_path, name):
    tests = tmp_path / "tests"
    shutil.copytree(ROOT / "examples" / name / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    assert " passed" in sh(installed, "-m", "pytest", "-p", "no:cacheprovider", "tests", cwd=tmp_path)


def test_source_of_one_package_and_explainer_of_another_run_with_a_built_in_scorer(installed, tmp_path):
    words = {"cat": (2, 0), "dog": (1, 0), "red": (0, 2), "green": (0, 1), "and": (-1, -1)}
    (tmp_path / "vectors.txt").write_text("".join(f"{word} {x} {y}\n" for word, (x, y) in words.items()))
    quiet = " ".join(["and"] * 8)
    texts = [f"{quiet} {quiet} a cat and a dog {quiet} a red and green {quiet}" for _ in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    animals_or_colours = (
        r"Explanation: animals[\s\S]*Window 1: .*(cat|dog)|Explanation: colours[\s\S]*Window 1: .*(red|green)"
    )
    rule = {"match": animals_or_colours, "reply": "[1]"}
    spec = {
        "saeval": 1, "task": "words", "version": "1",
        "llms": {"judge": {"model": "scripted/rule", "rules": [rule], "reply": "[0]"}},
        "source": {
            "use": "wordvec/wordvec",
            "with": {"path": "vectors.txt", "corpus": {"path": "text.jsonl", "context": 64}},
        },
        "latents": {"n": 2, "min_windows": 20},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 10, "score": 10, "non_activating": {"n": 10}}},
        "explainer": "lexicon/lexicon",
        "scorers": {"detection": {"with": {"batch": 1}}},
    }  # fmt: skip
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(spec))
    cache = {"SAEVAL_CACHE": str(tmp_path / "cache")}
    sh(installed, "-m", "saeval", "run", "--task", "words.yaml", "--out", "run", cwd=tmp_path, **cache)
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [
        (row["n"], row["value"]) for row in result["cells"][0]["scores"] if row["metric"] == "balanced_accuracy"
    ] == [(2, 1.0)]
    explanations = (tmp_path / "run").rglob("explanations.jsonl")
    assert "animals, such as 'cat', 'dog'" in "".join(file.read_text() for file in explanations)
