"""A run can be followed while it goes on: what it did, spent and failed at, and its scores so far."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browsers import chromium, violations
from click.testing import CliRunner
from fake_server import error
from planted_run import spec, truthful_server
from served import served

import saeval
from saeval._run import progress_file
from saeval._util import Silent
from saeval.cli.group import main
from saeval.report.follow import FollowServer, progress


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


class Watching(Silent):
    """Looks at the run's progress from outside whenever it moves."""

    def __init__(self, run_dir):
        self.run_dir, self.seen = run_dir, []

    def update(self, stage, done, total, failed):
        self.seen.append(progress(self.run_dir))


def test_progress_of_a_run_can_be_read_while_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(progress_file, "_EVERY", 0.0)
    monkeypatch.setattr(progress_file, "_SHARE", 1e9)
    watching = Watching(tmp_path / "run")

    def run():
        with truthful_server() as server:
            broken = error(400, "this prompt is not for me")
            server.chooses = lambda body, n: broken if n == 3 else None
            changed = spec(server, run={"concurrency": 2})
            return saeval.run(changed, out=tmp_path / "run", display=watching), server.answered

    with ThreadPoolExecutor(1) as thread:
        result, answered = thread.submit(run).result()
    assert {seen["status"] for seen in watching.seen} == {"running"}
    scored = [sum(score["n"] for score in seen.get("scores", [])) for seen in watching.seen]
    assert scored == sorted(scored) and len(set(scored)) > 20
    last = progress(tmp_path / "run")
    assert last["status"] == "done" and last["report"] and last["calls"] == answered > 0
    assert all(stage["ended"] and stage["done"] == stage["total"] for stage in last["stages"])
    assert sum(failure["times"] for failure in last["failures"]) == 1
    assert "this prompt is not for me" in last["failures"][0]["reason"]
    means = {(s["cell"], s["scorer"], s["variant"], s["metric"]): s for s in last["scores"]}
    rows = [(cell.cell, row) for cell in result.cells for row in cell.scores]
    shown = [(row, means.get((cell, row.scorer, row.variant, row.metric))) for cell, row in rows]
    pairs = [(row, mean) for row, mean in shown if mean is not None]
    assert len(pairs) == len(means) and all(mean["mean"] == pytest.approx(row.value) for row, mean in pairs)
    assert all((mean["n"], mean["failed"]) == (row.n, row.failed) for row, mean in pairs)


def test_run_whose_progress_cannot_be_written_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))

    class InTheWay(Silent):
        def begin(self, stage, total, unit):
            (tmp_path / "run" / "logs" / ".progress.json").mkdir(exist_ok=True)

    def run():
        with truthful_server() as server:
            return saeval.run(spec(server), out=tmp_path / "run", display=InTheWay())

    with ThreadPoolExecutor(1) as thread:
        assert not thread.submit(run).result().partial
    assert not (tmp_path / "run" / "logs" / "progress.json").exists()


def at(run_dir: Path, status: str, done: int) -> None:
    """Write what a run of two scorers writes when so many of its 12 latents are scored."""
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    now = time.time()
    state = {"status": status, "reason": "", "task": "mine", "began": now - 90, "updated": now}
    (run_dir / "run.json").write_text(json.dumps(state))
    stages = [{"stage": "detection", "unit": "latents", "done": done, "total": 12, "failed": 1, "seconds": 30.0}]
    score = {
        "cell": "coder=<b>topk</b>",
        "scorer": "detection",
        "variant": "explanation",
        "metric": "balanced_accuracy",
    }
    found = {
        "updated": now, "stages": stages, "calls": 300, "calling_seconds": 60.0, "usd": 0.125, "unknown": 0,
        "failures": [{"step": "detection", "reason": "<script>window.pwned=1</script>", "times": 1}],
        "scores": [{**score, "n": done, "mean": 0.625, "failed": 1}], "said": ["waits for the server \u202e"],
    }  # fmt: skip
    new = run_dir / "logs" / "new"
    new.write_text(json.dumps(found))
    new.replace(run_dir / "logs" / "progress.json")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_shows_a_run_that_goes_on_and_its_report_at_the_end(tmp_path, browser, scheme):
    from playwright.sync_api import expect

    run_dir, wrong = tmp_path / "run", []
    at(run_dir, "running", 4)
    with served(FollowServer(run_dir)) as server:
        page = browser.new_page(
            viewport={"width": 340, "height": 700}, color_scheme=scheme, bypass_csp=scheme == "dark"
        )
        page.on("console", lambda said: "favicon" in said.location["url"] or wrong.append(said.text))
        page.goto(server.url)
        expect(page.locator("#follow-status")).to_have_text("running")
        facts = page.locator("#follow-facts").inner_text().split("\n")
        assert facts[2:4] == ["Calls", "300"] and "5.0" in facts and "$0.12" in facts
        expect(page.locator("#follow-scores tbody")).to_contain_text("coder=<b>topk</b>")
        assert "4/12 latents" in page.locator("#follow-stages").inner_text()
        assert "1 min 0 s" in page.locator("#follow-stages").inner_text()  # left, at the speed so far
        assert page.evaluate("window.pwned") is None and "\\u202e" in page.locator("#follow-said").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == 340
        if scheme == "dark":
            assert violations(page) == []
        (run_dir / "report").mkdir()
        (run_dir / "report" / "index.html").write_text("the report")
        at(run_dir, "done", 12)
        expect(page.locator("#follow-status")).to_have_text("done")
        page.get_by_role("link", name="Open the report").click()
        expect(page.locator("body")).to_have_text("the report")
        page.close()
        for path in ("../run.json", "../logs/progress.json", "%2e%2e/run.json"):
            assert server.answer(f"/{server.token}/{path}").status == 404
        assert server.answer("/x/status.js").status == server.answer("/status.js").status == 403
    assert wrong == []


def test_following_goes_with_no_other_view_and_needs_a_run(tmp_path):
    at(tmp_path / "run", "running", 1)
    view = ["view", str(tmp_path / "run"), "--follow"]
    together = CliRunner().invoke(main, [*view, "--serve"])
    assert together.exit_code == 2 and "either --serve or --follow" in together.output
    (tmp_path / "empty" / "report").mkdir(parents=True)
    nothing = CliRunner().invoke(main, ["view", str(tmp_path / "empty"), "--follow"])
    assert nothing.exit_code == 2 and "run.json" in nothing.output
