"""A reader types text and sees a latent's activations on it: those that the model and the coder's encoder give."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from browsers import chromium, violations
from click.testing import CliRunner
from planted_run import cache_in
from served import served
from tiny import tiny_source

from saeval._run.typed_text import TypedText
from saeval.cli.group import main
from saeval.report.live import MOST, LiveServer

LENGTH = """
from saeval.plugin import Metric, Score, Scorer


class Length(Scorer):
    name = "length"
    metrics = (Metric("chars", low=0.0, high=1e9),)

    async def score(self, explanation, examples, context):
        return Score(values={"chars": float(len(explanation.text))})
"""
TEXT = "Nobody spoke for a while. In the year 1851 a ship left the harbour, with two dogs & 40 barrels; émigrés?"
CELL = "all"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of a tiny SAE on a tiny model; the model and the SAE lie beside it."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "length.py").write_text(LENGTH)
    task = {
        "saeval": 1, "task": "live", "version": "1", "llms": {},
        "source": tiny_source(folder),
        "latents": {"n": 4, "min_windows": 4},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 10, "non_activating": {"n": 10}}},
        "explainer": "top_tokens", "scorers": {"length": {"use": "./length.py:Length"}},
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    with cache_in(folder):
        done = CliRunner().invoke(main, ["run", str(folder / "task.yaml"), "--out", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def by_hand(run):
    """All activations on the text by the formula of a TopK SAE, context by context of 32 tokens after BOS."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.parent / "model")
    model = AutoModelForCausalLM.from_pretrained(run.parent / "model", dtype=torch.float32)
    sae = load_file(run.parent / "sae" / "sae_weights.safetensors")
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = []
    for start in range(0, len(ids), 32):
        context = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 32]]])
        with torch.no_grad():
            x = model(context, output_hidden_states=True).hidden_states[2][0, 1:]
        every = ((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]).relu()
        strongest = every.topk(4, dim=-1)
        found.append(torch.zeros_like(every).scatter(-1, strongest.indices, strongest.values))
    return torch.cat(found).numpy()


@pytest.fixture(scope="module")
def latent(run, by_hand) -> int:
    """A latent with a page that fires on the text."""
    lines = (run / "cells" / CELL / "explanations.jsonl").read_text().splitlines()
    return max((json.loads(line)["latent"] for line in lines), key=lambda index: by_hand[:, index].max())


def serving(run, read=None):
    typed = TypedText(run)
    return served(LiveServer(run, 0, typed.cells, read or typed.read))


def asked(server, **changes):
    """What the server tells a page of a text."""
    query = urlencode({"n": 7, "cell": CELL, "latent": 0, "text": TEXT, **changes})
    answer = server.answer(f"/{server.token}/typed.js?{query}")
    assert answer.status == 200
    return json.loads(answer.content.decode().removeprefix("saevalTyped(7,").removesuffix(");\n"))


def test_activations_of_typed_text_are_those_of_the_encoder(run, latent, by_hand):
    with serving(run) as server:
        contexts = asked(server, latent=latent)["contexts"]
    assert len(contexts) == 3 and len(contexts[0][0]) == 32
    assert "".join(token for tokens, _ in contexts for token in tokens) == TEXT
    values = [value for _, activations in contexts for value in activations]
    assert values == pytest.approx(by_hand[:, latent].tolist(), rel=2e-3, abs=2e-4) and max(values) > 0.1


def test_a_text_is_bounded_and_one_is_read_at_a_time(run):
    reading, release, taken = threading.Event(), threading.Event(), []

    def slow(cell, latent, text):
        taken.append(text)
        reading.set()
        release.wait(10)
        return []

    with serving(run, slow) as server:
        assert "the maximum is 2,000" in asked(server, text="x" * (MOST + 1))["error"] and not taken
        assert "no model" in asked(server, cell="other")["error"]
        first = threading.Thread(target=asked, args=(server,), kwargs={"text": "one"})
        first.start()
        assert reading.wait(10)
        assert "another text" in asked(server, text="two")["error"] and taken == ["one"]
        release.set()
        first.join()
        assert asked(server, text="three") == {"contexts": []} and taken == ["one", "three"]
        for query in (
            "",
            "n=1",
            "n=x&cell=all&latent=0&text=a",
            "n=1&cell=all&latent=x&text=a",
            "n=1&n=2&cell=a&latent=1&text=a",
        ):
            assert server.answer(f"/{server.token}/typed.js?{query}").status == 400
        query = urlencode({"n": 1, "cell": CELL, "latent": 0, "text": "four"})
        assert server.answer(f"/x/typed.js?{query}").status == server.answer(f"/typed.js?{query}").status == 403
        assert "four" not in taken


def test_trouble_is_told_and_the_server_goes_on(run):
    def failing(cell, latent, text):
        raise RuntimeError("</script><b>")

    with serving(run, failing) as server:
        answer = server.answer(
            f"/{server.token}/typed.js?{urlencode({'n': 7, 'cell': CELL, 'latent': 0, 'text': 'a'})}"
        )
        assert b"RuntimeError" in answer.content and b"<" not in answer.content
    with serving(run) as server:
        assert "no latent 999" in asked(server, latent=999)["error"] and asked(server)["contexts"]
        assert asked(server, text="") == {"contexts": []}


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_a_latent_shows_activations_on_text_of_ones_own(run, browser, latent, by_hand, scheme):
    from playwright.sync_api import expect

    wrong = []
    with serving(run) as server:
        page = browser.new_page(
            viewport={"width": 340, "height": 700}, color_scheme=scheme, bypass_csp=scheme == "dark"
        )
        page.on("console", lambda said: "favicon" in said.location["url"] or wrong.append(said.text))
        page.goto(server.url)
        page.locator("#board tbody a").click()
        page.get_by_role("link", name=str(latent), exact=True).click()
        page.get_by_label("Text").fill(TEXT)
        page.get_by_role("button", name="Show activations").click()
        result = page.locator("#latent [role=status]")
        expect(result).to_contain_text("Fires on")
        expected = by_hand[:, latent]
        assert f"Fires on {(expected > 0).sum()} of {len(expected)} tokens" in result.inner_text()
        assert result.locator("mark").count() == (expected > 0).sum()
        hover = float(result.locator("mark").first.get_attribute("title").split()[1])
        assert hover == pytest.approx(expected[expected > 0][0], rel=2e-3)
        assert page.evaluate("document.documentElement.scrollWidth") == 340
        if scheme == "dark":
            assert violations(page) == []
        page.close()
    assert wrong == []


def test_report_from_disk_and_without_live_has_no_field(run):
    (cell,) = (run / "report" / "latents").glob("*.html")
    assert '<meta name="saeval-live"' not in cell.read_text()
    refused = CliRunner().invoke(main, ["view", str(run), "--live"])
    assert refused.exit_code == 2 and "--live needs --serve" in refused.output


def test_run_without_a_model_is_refused_in_a_sentence(run, tmp_path):
    task = {
        "saeval": 1, "task": "planted", "version": "1", "llms": {}, "source": {"use": "synthetic", "with": {"n_latents": 4}},
        "latents": {"n": 2}, "sampler": "random", "explainer": "top_tokens",
        "scorers": {"length": {"use": str(run.parent / "length.py:Length")}},
    }  # fmt: skip
    (tmp_path / "report").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(task))
    refused = CliRunner().invoke(main, ["view", str(tmp_path), "--serve", "--live"])
    assert refused.exit_code == 2 and "no cell of this run has a model" in refused.output
