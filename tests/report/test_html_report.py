"""The HTML report opens from disk without a network, shows what the files say, and no text in them does harm."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cell_files as files
import pytest
from browsers import chromium, violations
from click.testing import CliRunner
from latent_pages import latents_of
from made_run import SCORERS, cell, floor_sample, made_run, run_of, score_row
from planted_run import spec, truthful_server
from saeval_plugins.scorers.human import Human

import saeval
from saeval._compare.join import join
from saeval._compare.leaderboard import Leaderboard
from saeval._util.errors import InputError
from saeval._util.owned_dirs import mark
from saeval._util.text import visible
from saeval.cli.group import main
from saeval.plugin import LatentId
from saeval.records.results import JudgeCheck, JudgeRole, RunResult
from saeval.records.rows import Correlation, DecileShares
from saeval.records.scores import Explanation
from saeval.report.files import write_reports
from saeval.report.html import index, paged, plots, write_html, write_plots
from saeval.report.html.latents import CellTables, Ranked
from saeval.report.html.plots import Series
from saeval.report.html.svg import Axis
from saeval.report.html.text import script_json
from saeval.report.view import bundle
from saeval.testing.toys import context, make_examples

BIDI = "\u202eevil\u2066"
HOSTILE = [
    "<script>window.pwned=1</script>", "</script><script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>",
    '" autofocus onfocus=window.pwned=1 x="', "'); window.pwned=1; ('", "{{ 7*7 }}", "]]><svg onload=window.pwned=1>", "<!-- <script>",
    f"a {BIDI} b", "line\u2028break\u2029", "\x1b[31m\x00\u200b\ufeff", "javascript:window.pwned=1", "=HYPERLINK(1)", "&lt;b&gt;",
]  # fmt: skip


# --- runs made up for these tests ---


def write_cell(
    run_dir: Path,
    of,
    numbers,
    text=lambda i: f"words about {i}",
    tokens=None,
    why="",
    scorers=SCORERS,
    directions=None,
    calls=(),
) -> None:
    """Write the tables of a cell. The k-th of the latents scores k/10 under detection, 1 - k/10 under fuzzing."""
    folder = run_dir / "cells" / of.cell
    folder.mkdir(parents=True)
    given = {"detection": lambda k: k / 10, "fuzzing": lambda k: 1 - k / 10, "embedding": lambda k: 0.5}
    files.write_latents(
        folder / "latents.parquet",
        [
            {**(directions or {}).get(i, {}), "latent": i, "firings": 10 * i, "windows": i, "density": i / 1000, "max_activation": 8.0, "explanation_status": "ok",
             **{f"score.{s}.{SCORERS[s]}": min(1.0, max(0.0, given[s](k))) for s in scorers if s in given}}
            for k, i in enumerate(numbers)
        ],
    )  # fmt: skip
    words = tokens or [" the", " whale", " and", " the", " sea"]
    windows = [
        {"latent": i, "role": "explain" if start < 20 else "score", "active": start % 20 < 10, "decile": 3 if start % 20 < 10 else None,
         "context": i, "start": start, "document": 1, "tokens": words, "token_ids": list(range(len(words))),
         "activations": [0.0, 8.0 - start / 10, *[0.0] * (len(words) - 2)] if start % 20 < 10 else [0.0] * len(words)}
        for i in numbers for start in (0, 5, 10, 20, 25, 30, 35)
    ]  # fmt: skip
    files.write_examples(folder / "examples.parquet", windows)
    judged = [
        {"latent": i, "scorer": scorer, "variant": variant, "example": f"{i}:{start}", "active": start < 30, "predicted": answer,
         "probability": p, "decile": None, "status": status, "reason": why if status != "ok" else ""}
        for i in numbers for scorer in ("detection", "fuzzing") for variant in ("explanation", "random_explanation")
        for start, answer, p, status in ((20, True, 0.9, "ok"), (25, False, 0.2, "ok"), (30, False, 0.05, "ok"), (35, None, None, "unparsed"))
    ]  # fmt: skip
    files.write_judgements(folder / "judgements.parquet", judged)
    if calls:
        files.write_calls(folder / "calls.parquet", calls)
    files.write_explanations(
        folder / "explanations.jsonl",
        [
            {"latent": i, "variant": v, "text": text(i) if v == "explanation" else "something else", "status": "ok", "reason": "", "notes": {}}
            for i in numbers for v in ("random_explanation", "explanation")
        ],
    )  # fmt: skip


def whole_run(folder: Path) -> tuple[RunResult, Path]:
    """A run with all sections: two contestants and two baseline coders, with tables of 12 latents each."""
    run_dir = folder / "run"
    check = JudgeCheck(
        model="openai/judge-2",
        task="judge-check",
        task_version="1.0",
        when="2026-01-31",
        latents=12,
        scores=[score_row("detection", 0.987)],
    )
    made = made_run(
        judges=[
            JudgeRole(role="judge", model="openai/judge-1", check=None),
            JudgeRole(role="other", model="openai/judge-2", check=check),
        ],
        correlations=[Correlation(scorers=("detection", "fuzzing"), n=24, pearson=-0.9, spearman=-1.0)],
    )
    shares = DecileShares(
        scorer="detection",
        right=(0.9, 0.8, None, *[0.5] * 7),
        n=(9, 9, 0, *[9] * 7),
        negatives_right=0.6,
        negatives_n=90,
    )
    own = [Correlation(scorers=("detection", "fuzzing"), n=12, pearson=-0.9, spearman=-1.0)]
    made = made.model_copy(
        update={"cells": [c.model_copy(update={"deciles": [shares], "correlations": own}) for c in made.cells]}
    )
    known = {"metadata": {"neuronpedia_id": "some-model/6-res-jb"}}
    made = made.model_copy(update={"cells": [made.cells[0].model_copy(update={"coder": known}), *made.cells[1:]]})
    told = {5: {"neighbours": [6, 999], "cosines": [0.9, 0.25], "promoted": [" whale", "\u202e<b>"]}}
    calls = [
        {"latent": 5, "step": step, "variant": "explanation", "call": k, "prompt": f"[user]\nWhat of {k or 5}? the whale and the sea", "reply": reply, "status": status}
        for step, k, reply, status in (
            ("explain", 0, "<b>words</b> \u202e about 5", "ok"), ("detection", 1, "[1, 0]", "ok"), ("detection", 2, "the server is gone", "failed"))
    ]  # fmt: skip
    for n, one in enumerate(made.cells):
        more = {"directions": told, "calls": calls} if n == 0 else {}
        write_cell(run_dir, one, [100 * n + k for k in range(1, 13)], why="no number in the reply", **more)
    (run_dir / "spec.yaml").write_text("saeval: 1\ntask: face-off\n")
    write_html(made, run_dir, run_dir / "report")
    return made, run_dir / "report"


def hostile_run(folder: Path) -> Path:
    """A run whose every text is hostile: names, explanations, tokens, reasons, warnings, spec."""
    scripts, *_ = HOSTILE
    labels = dict.fromkeys(HOSTILE[:4], "auroc")
    scores = [score_row(s, 0.6, metric=m, judge=HOSTILE[2], floor={HOSTILE[2]: 0.5}) for s, m in labels.items()]
    one = cell("plain", scores, **{scripts: HOSTILE[2], "other": BIDI})
    one = one.model_copy(
        update={
            "cell": "coder=plain",
            "subject": HOSTILE[2],
            "explainer": HOSTILE[1],
            "coder": {"hookpoint": HOSTILE[3]},
        }
    )
    made = run_of(
        one, task=HOSTILE[0], task_version=HOSTILE[3], description=" ".join(HOSTILE), warnings=HOSTILE, run_id=HOSTILE[1],
        judges=[JudgeRole(role=HOSTILE[2], model=HOSTILE[1], check=None)], components={HOSTILE[1]: HOSTILE},
        seconds={HOSTILE[2]: 1.0}, rank_by=f"{scripts}.auroc",
    )  # fmt: skip
    tokens = [" plain", *HOSTILE]
    write_cell(folder / "run", one, range(len(HOSTILE)), HOSTILE.__getitem__, tokens, why=HOSTILE[2], scorers=())
    table = folder / "run" / "cells" / one.cell
    files.write_latents(
        table / "latents.parquet",
        [{"latent": i, **{f"score.{s}.auroc": i / 20 for s in labels}} for i in range(len(HOSTILE))],
    )
    files.write_judgements(
        table / "judgements.parquet",
        [
            {"latent": i, "scorer": s, "variant": v, "example": f"{i}:20", "active": True, "predicted": None, "status": v, "reason": v}
            for i in range(len(HOSTILE)) for s in labels for v in ("explanation", *HOSTILE)
        ],
    )  # fmt: skip
    (folder / "run" / "spec.yaml").write_text("\n".join(HOSTILE), encoding="utf-8")
    write_html(made, folder / "run", folder / "run" / "report")
    return folder / "run" / "report"


@pytest.fixture(scope="module")
def report(tmp_path_factory, joined) -> Path:
    folder = whole_run(tmp_path_factory.mktemp("whole"))[1]
    shutil.copy(joined / "board.html", folder / "joined.html")
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("hostile"))


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in self.raw:
            self.raw[self.inside][-1] += data


def pages(folder: Path) -> list[Page]:
    found = [Page(p) for p in sorted(folder.rglob("*.html"))]
    assert len(found) >= 2
    return found


# --- what the files hold ---


def test_pages_fetch_nothing_and_allow_no_script_or_style_but_their_own(report, hostile):
    for page in [*pages(report), *pages(hostile)]:
        assert not [a for _, a in page.elements if a.keys() & {"src", "srcset", "action", "formaction", "style"}]
        assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "img", "object", "embed", "base"})
        (policy,) = [a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        for kind in ("script", "style"):
            own = page.raw[kind][-1]
            assert f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'" in policy
        for href in [a["href"] for t, a in page.elements if t == "a"]:
            assert re.fullmatch(r"#[a-z]+|(\.\./index|latents/[\w.-]+)\.html(#latent=\d+&sort=gap&dir=desc)?", href), (
                href
            )


def test_hostile_text_becomes_neither_element_nor_attribute(hostile):
    for page in pages(hostile):
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert len(page.raw["script"]) <= 2 and not [s for s in page.raw["script"] if s.startswith("window.pwned")]
        assert all(a.get("id") in (None, "data") for t, a in page.elements if t == "script")
        for c in "\u202e\u2066\u2028\u2029\u200b\ufeff\x00\x1b":
            assert c not in page.source
    assert "\\u202eevil\\u2066" in (hostile / "index.html").read_text(encoding="utf-8")


def test_files_of_latents_hold_data_that_no_script_reads_as_its_own_and_are_free_of_markup(hostile):
    shard, search = sorted(hostile.rglob("*.js"))
    found = search.read_text(encoding="ascii")
    assert not set("<>&") & set(found)
    ((_, _, lines),) = json.loads(re.fullmatch(r"saevalSearch\((.*)\);\n", found)[1])
    assert [text for _, text, _ in lines] == HOSTILE
    text = shard.read_text(encoding="utf-16")
    outside = re.sub("[\u4000-\ubfff]", "", text)  # what holds data; the rest is script
    assert outside.isascii() and not set("<>&") & set(outside)
    details = latents_of(text)
    assert [d["latent"] for d in details] == list(range(len(HOSTILE)))
    assert [d["explanations"][0][:2] for d in details] == [["explanation", text] for text in HOSTILE]
    assert details[0]["windows"]["score"][0] == ["0:20", 1, 3, [" plain", *HOSTILE], [1, 6.0]]


def test_text_is_made_visible_and_json_fit_for_scripts():
    assert visible(f"plain {BIDI}\n\tß 鯨") == "plain \\u202eevil\\u2066\n\tß 鯨"
    assert visible("\ud800\x9b") == "\\ud800\\u009b"
    assert json.loads(script_json(HOSTILE)) == HOSTILE
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_details_say_what_was_judged_and_what_the_explainer_saw(report):
    details = latents_of(next(report.rglob("0-coder-topk/0.js")).read_text("utf-16"))
    first = details[0]
    assert first["explanations"] == [["explanation", "words about 1", "ok", ""], ["random_explanation", "something else", "ok", ""]]  # fmt: skip
    assert [w[0] for w in first["windows"]["explain"]] == ["1:0", "1:5", "1:10"]
    assert first["windows"]["explain"][1][4] == [1, 7.5] and first["windows"]["explain"][2][4] == []
    assert [w[0] for w in first["windows"]["score"]] == ["1:20", "1:25", "1:30", "1:35"]
    assert first["judged"]["detection"]["explanation"] == [
        [0, 1, 2, 3], [1, 1, 0, 0], [1, 0, 0, None], [0.9, 0.2, 0.05, None], ["ok", "ok", "ok", "unparsed"],
        ["", "", "", "no number in the reply"], None,
    ]  # fmt: skip


def test_gap_is_the_distance_of_rank_shares_and_failures_are_counted(tmp_path):
    one = cell("a", [score_row(s, 0.6) for s in ("detection", "fuzzing")])
    write_cell(tmp_path, one, [3, 1, 2], why="gave up")
    ranked = [Ranked("detection", "balanced_accuracy", True), Ranked("fuzzing", "balanced_accuracy", True)]
    tables = CellTables(one, tmp_path / "cells" / one.cell, ranked)
    assert tables.numbers == [3, 1, 2]
    assert tables.gaps == [pytest.approx(2 / 3, abs=1e-4), 0, pytest.approx(2 / 3, abs=1e-4)]
    turned = CellTables(one, tmp_path / "cells" / one.cell, [ranked[0], Ranked("fuzzing", "balanced_accuracy", False)])
    assert turned.gaps == [0, 0, 0]
    assert tables.failures() == [("detection", "unparsed: gave up", 6), ("fuzzing", "unparsed: gave up", 6)]


def test_report_without_tables_is_the_first_page_alone(tmp_path):
    write_reports(made_run(), tmp_path / "report")
    page = Page(tmp_path / "report" / "index.html")
    assert not list((tmp_path / "report").glob("latents/*")) and "topk" in page.source
    assert not [a["href"] for t, a in page.elements if t == "a" and not a["href"].startswith("#")]


def test_every_headline_interval_warning_and_cost_is_on_the_first_page(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    board = Leaderboard.of(made_run())
    for x in board.standings:
        for scorer in board.metrics:
            row = board.row(x.cell, scorer)
            assert f"{row.value:.3f}" in text and f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}" in text
    for expected in ("something a reader must know", "123,456", "unknown", "task: face-off", "unparsed: no number in the reply",
                     "judge-check", "Checked on 2026-01-31", "0.987", "Seed 7", "-1.00", "0.900", "12.5"):  # fmt: skip
        assert expected in text, expected


def test_pages_of_an_earlier_report_are_removed(tmp_path):
    made, folder = whole_run(tmp_path)
    (folder / "latents" / "0-coder-topk" / "7.js").write_text("old")
    (folder / "latents" / "notes.txt").write_text("mine")
    before = {p: p.read_bytes() for p in folder.rglob("*.html")}
    write_html(made, folder.parent, folder)
    assert not (folder / "latents" / "0-coder-topk" / "7.js").exists() and (folder / "latents" / "notes.txt").exists()
    assert {p: p.read_bytes() for p in folder.rglob("*.html")} == before


def test_a_cell_name_cannot_lead_out_of_the_run_directory(tmp_path):
    write_cell(tmp_path / "elsewhere", cell("x", []), [1])
    evil = cell("x", [score_row("detection", 0.6)]).model_copy(update={"cell": "../../elsewhere/cells/coder=x"})
    (tmp_path / "run").mkdir()
    write_html(run_of(evil), tmp_path / "run", tmp_path / "run" / "report")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == ["index.html", "report"]


@pytest.mark.parametrize("name", ["latents.parquet", "explanations.jsonl", "judgements.parquet"])
def test_a_broken_table_is_named(tmp_path, name):
    one = cell("a", [score_row("detection", 0.6)])
    write_cell(tmp_path, one, [1, 2])
    (tmp_path / "cells" / one.cell / name).write_bytes(b"no such thing")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        write_html(run_of(one), tmp_path, tmp_path / "report")


# --- drawings ---


def test_axis_puts_values_where_they_belong():
    axis = Axis(0, 10, 100, 200)
    assert [axis(0), axis(5), axis(10), axis(99)] == [100, 150, 200, 200]
    assert axis.ticks(5) == [0, 2, 4, 6, 8, 10]
    log = Axis(1, 100, 0, 100, log=True)
    assert [log(1), log(10), log(100)] == pytest.approx([0, 50, 100]) and log.ticks() == [1, 2, 5, 10, 20, 50, 100]
    around = Axis.around([0.2, 1.0], 0, 1, (0.0, 1.0))
    assert around.high == 1.0 and 0.1 < around.low < 0.2
    assert Axis.around([1e21], 0, 1, (0.0, 1.0)).ticks()  # of a damaged file


def test_plot_against_l0_shows_value_interval_floors_and_chance():
    made = made_run()
    board = Leaderboard.of(made)
    drawn = plots.against(board, "detection", Series.of(made.cells, {}))
    for i, one in enumerate(made.cells):
        row = board.row(one, "detection")
        assert f"{one.axes['coder']}: {row.value:.3f}, {row.ci95[0]:.3f} to {row.ci95[1]:.3f}; l0 32.25" in drawn
        assert drawn.count("whisker") == 4 and f"{one.axes['coder']}: random_explanation 0.513" in drawn, i
    assert drawn.count('class="chance"') == 1
    none = made.cells[0].model_copy(update={"measures": {}})
    assert plots.against(board, "detection", Series.of([none], {})) is None


def test_histogram_counts_every_latent_once():
    (series,) = Series.of([cell("a", [])], {})
    drawn = plots.distribution("d", "auroc", [(series, [0.0, 0.02, 0.5, 0.999, 1.0], score_row("d", 0.5))])
    counts = [int(n) for n in re.findall(r">(\d+) of 5 latents from", drawn)]
    assert sorted(counts) == [1, 2, 2] and "mean 0.500" in drawn
    assert plots.distribution("d", "auroc", [(series, [], None)]) is None


def test_decile_plot_leaves_out_what_is_unknown():
    (series,) = Series.of([cell("a", [])], {})
    shares = DecileShares(
        scorer="d", right=(1.0, *[None] * 8, 0.0), n=(3, *[0] * 8, 4), negatives_right=0.25, negatives_n=8
    )
    drawn = plots.deciles("d", [(series, shares)])
    assert (
        "a, decile 0: 1.000 of 3" in drawn
        and "a, decile 9: 0.000 of 4" in drawn
        and "a, non-activating: 0.250 of 8" in drawn
    )
    assert drawn.count("<circle") == 3


def test_contestants_differ_in_look_and_baselines_are_grey():
    series = Series.of(made_run().cells, {})
    assert [s.style for s in series] == ["s0", "s1", "b0", "b1"]
    many = Series.of([cell(str(k), []) for k in range(24)], {})
    assert len({(s.style, s.shape) for s in many}) == 24


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser):
    """Open a file with the network off; whatever the console says, or a request that leaves the disk, fails the test."""
    contexts, wrong = [], []

    def open_page(file: Path, state: str = "", **options):
        opened = browser.new_context(offline=True, **{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(opened)
        page = opened.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: wrong.append(request.url) if not re.match("file:|blob:", request.url) else None
        )
        page.set_default_timeout(10_000)
        page.goto(file.as_uri() + state)
        return page

    yield open_page
    for opened in contexts:
        opened.close()
    assert not wrong


def shows(page, latent: int | str, other: bool = False) -> None:
    """Wait until the page shows this latent, or another one."""
    from playwright.sync_api import expect

    expect(page).to_have_title(re.compile(f"^Latent (?!{latent} )" if other else f"^Latent {latent} "))


def column(page, table: str, k: int) -> list[str]:
    page.wait_for_timeout(100)  # a click changes the address, and the page answers to that when the browser tells it
    cells = page.locator(f"{table} tbody tr:visible > :nth-child({k})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def test_leaderboard_sorts_and_filters_and_keeps_its_state_in_the_address(report, visit):
    page = visit(report / "index.html")
    assert column(page, "#board", 2) == ["jumprelu", "topk", "random_sae", "neurons"]
    page.get_by_role("button", name="detection").click()
    values = [float(v) for v in column(page, "#board", 3)]
    assert values == sorted(values, reverse=True) and page.locator("th[aria-sort=descending]").count() == 1
    page.get_by_role("button", name="detection").click()
    assert [float(v) for v in column(page, "#board", 3)] == sorted(values)
    page.get_by_label("baselines").uncheck()
    assert (
        column(page, "#board", 2) == ["topk", "jumprelu"]
        and page.locator("#board-count").inner_text() == "2 of 4 cells"
    )
    page.get_by_role("button", name="Filter by column").click()
    page.get_by_label("Filter detection").fill(f"> {values[0] - 0.001}")
    assert column(page, "#board", 2) == ["jumprelu"]
    page.get_by_label("Filter detection").fill("0.6..0.62")
    assert column(page, "#board", 2) == ["topk"]
    address = page.url
    assert "sort=detection" in address and "dir=asc" in address and "base=0" in address
    again = visit(report / "index.html", address[address.index("#") :])
    assert column(again, "#board", 2) == ["topk"] and not again.get_by_label("baselines").is_checked()
    again.get_by_label("Filter detection").fill("")
    again.get_by_role("searchbox", name="Filter").fill("JUMP")
    assert column(again, "#board", 2) == ["jumprelu"]


def first_page(folder: Path, *cells_) -> Path:
    write_html(run_of(*cells_), folder, folder / "report")
    return folder / "report" / "index.html"


def test_filter_of_ranks_keeps_cells_that_have_one_of_its_ranks(visit, tmp_path):
    cells_ = [cell(name, [score_row("detection", value)]) for name, value in (("a", 0.8), ("b", 0.79), ("c", 0.5))]
    page = visit(first_page(tmp_path, *cells_, cell("base", [score_row("detection", 0.4)], "random_sae")))
    assert column(page, "#board", 1) == ["1-2", "1-2", "3", "base"]
    page.get_by_role("button", name="Filter by column").click()
    for filter_, names in {
        "<= 1": ["a", "b"], "< 2": ["a", "b"], "> 1": ["a", "b", "c"], "> 2": ["c"], ">= 3": ["c"], "3..3": ["c"],
        "2..3": ["a", "b", "c"], "> 3": [], "1-": ["a", "b"],
    }.items():  # fmt: skip
        page.get_by_label("Filter rank").fill(filter_)
        assert column(page, "#board", 2) == names, filter_
    page.get_by_label("Filter rank").fill("")
    page.get_by_role("button", name="rank").click()
    page.get_by_role("button", name="rank").click()
    assert column(page, "#board", 1) == ["3", "1-2", "1-2", "base"]


SIZES = ["-2", "-1e-3", "1e-3", "0.25", "0.5", "2", "10", "layer2", "layer10"]


def test_axes_sort_numbers_by_size_before_texts(visit, tmp_path):
    mixed = sorted(SIZES)
    page = visit(first_page(tmp_path, *(cell(f"c{size}", [score_row("detection", 0.6)], size=size) for size in mixed)))
    page.get_by_role("button", name="size").click()
    assert column(page, "#board", 5) == SIZES
    page.get_by_role("button", name="size").click()
    assert column(page, "#board", 5) == SIZES[::-1]
    page.get_by_role("button", name="Filter by column").click()
    page.get_by_label("Filter size").fill("-1e-3..0.25")
    assert column(page, "#board", 5) == ["0.25", "1e-3", "-1e-3"]


def test_page_of_latents_rounds_as_the_first_page_does(visit, tmp_path):
    rows = [
        score_row("detection", 0.0625),
        score_row("fuzzing", -0.0001, range=(-1.0, 1.0)),
        score_row("embedding", 0.61250001),
    ]
    made = run_of(cell("tie", [row.model_copy(update={"ci95": None}) for row in rows]))
    write_cell(tmp_path, made.cells[0], [1, 2])
    write_html(made, tmp_path, tmp_path / "report")
    page = visit(tmp_path / "report" / "index.html")
    first = [page.locator("#board tbody td.score b").nth(k).inner_text() for k in range(3)]
    page = visit(tmp_path / "report" / "latents" / "0-coder-tie.html", "#latent=1")
    shows(page, 1)
    means = page.get_by_role("region", name="Scores").locator("tbody td:nth-child(5)").all_inner_texts()
    assert means == first == ["0.062", "0.000", "0.613"]


def test_a_link_opens_a_latent_with_its_order_and_neighbours(report, visit):
    page = visit(report / "index.html")
    page.locator("#disagreements a").first.click()
    page.wait_for_selector(".judged")
    assert "sort=gap" in page.url
    number = int(page.locator("#latent-title").inner_text().removeprefix("Latent "))
    assert number in (1, 12, 101, 112)
    assert page.locator(".explanation").inner_text() == f"words about {number}"
    assert page.locator("#latent mark").first.inner_text() == " whale"
    assert "1 of 12" in page.locator(".steps").inner_text()
    page.get_by_role("link", name="Next").click()
    shows(page, number, other=True)
    assert "2 of 12" in page.locator(".steps").inner_text()
    page.go_back()
    shows(page, number)
    page.get_by_role("link", name="All latents").click()
    page.locator("#latents tbody tr").first.wait_for()
    assert float(column(page, "#latents", 6)[0]) >= float(column(page, "#latents", 6)[-1])
    page.locator("#list-order").select_option("worst detection")
    assert column(page, "#latents", 1)[0] in ("1", "101")
    page.get_by_role("searchbox").fill("about 1")
    assert all("about 1" in text for text in column(page, "#latents", 2))
    page.locator("header a").click()
    page.wait_for_selector("#board")


def test_judged_windows_are_listed_worst_first_with_truth_answer_and_probability(report, visit):
    page = visit(report / "latents" / "0-coder-topk.html", "#latent=5")
    page.wait_for_selector(".judged")
    rows = [
        [cell.strip() for cell in row.locator("td").all_inner_texts()] for row in page.locator(".judged tbody tr").all()
    ]
    assert [row[:3] for row in rows] == [
        ["✗ no", "yes", "0.20"],
        ["✓ yes", "yes", "0.90"],
        ["✓ no", "no: non-activating", "0.05"],
        ["unparsed: no number in the reply", "no: non-activating", "–"],
    ] and rows[0][3] == "3"
    assert "2 of 3 correct" in page.locator("#latent").inner_text()
    page.locator("#latent").get_by_label("Order").select_option("as asked")
    page.locator("#latent").get_by_label("Explanation").select_option("random_explanation")
    assert "windows=given" in page.url and "variant=random_explanation" in page.url
    page.locator(".judged td >> nth=0", has_text="✓ yes").wait_for()


def test_keyboard_alone_is_enough(report, visit):
    page = visit(report / "index.html")
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        press("Tab")
        if page.evaluate("document.activeElement.closest('th')?.dataset.key") == "fuzzing":
            break
    press("Enter")
    assert page.locator("th[aria-sort]").get_attribute("data-key") == "fuzzing"
    assert page.evaluate("document.activeElement.closest('th')?.dataset.key") == "fuzzing"
    for _ in range(60):
        press("Tab")
        if page.evaluate("document.activeElement.getAttribute('href')?.startsWith('latents/')"):
            break
    press("Enter")
    page.wait_for_selector("#latents tbody a")
    for _ in range(60):
        press("Tab")
        if page.evaluate("document.activeElement.closest('tbody') !== null"):
            break
    first = page.evaluate("document.activeElement.textContent")
    press("Enter")
    page.wait_for_selector(".judged")
    assert page.evaluate("document.activeElement.id") == "latent-title"
    press("ArrowRight")
    shows(page, first, other=True)
    press("ArrowLeft")
    shows(page, first)
    press("Escape")
    page.wait_for_selector("#latents tbody a")
    assert page.evaluate("document.activeElement.textContent") == first


def test_hostile_text_does_nothing_in_a_browser(hostile, visit):
    page = visit(hostile / "index.html")
    for name in ("index.html", "latents/0-coder-plain.html"):
        page.goto((hostile / name).as_uri())
        for button in page.locator("th button").all():
            button.click()
        assert page.evaluate("window.pwned") is None
    for number, text in enumerate(HOSTILE):
        page.goto((hostile / "latents" / "0-coder-plain.html").as_uri() + f"#latent={number}")
        shows(page, number)
        assert page.locator(".explanation bdi").evaluate("e => e.textContent") == visible(text)
        tokens = page.locator(".window").first.evaluate("e => e.textContent")
        assert "<script>window.pwned=1</script>" in tokens and "\\u202eevil" in tokens and "\u202e" not in tokens
    assert page.evaluate("window.pwned") is None
    page.goto((hostile / "index.html").as_uri() + "#sort=<img src=x onerror=pwned=1>&q=%3Cscript%3E&at=');//&f.x=..")
    assert page.evaluate("window.pwned") is None
    page.goto(
        (hostile / "latents" / "0-coder-plain.html").as_uri() + "#latent=__proto__&sort=constructor&dir=x&page=-9"
    )
    assert page.locator("#latent-title").inner_text() == "No such latent"


def test_ratings_are_downloaded_as_the_table_that_the_human_scorer_reads(tmp_path, visit):
    odd = 'says "no", or\n=1+1; ünï <b> ' + BIDI
    one = cell("a", [score_row("detection", 0.6)])
    one = one.model_copy(update={"coder": {**one.coder, "hookpoint": "layers.9"}})
    write_cell(tmp_path, one, [4, 7, 9], lambda i: odd if i == 7 else f"words about {i}")
    write_html(run_of(one), tmp_path, tmp_path / "report")
    page = visit(tmp_path / "report" / "latents" / "0-coder-a.html", "#latent=7", accept_downloads=True)
    page.wait_for_selector(".judged")
    page.get_by_label("rating mode").check()
    page.wait_for_selector("fieldset")
    assert page.locator(".judged").count() == 0 and "0.6" not in page.locator("#latent").inner_text()
    page.get_by_label("Your name").fill("Ann, B.")
    page.locator("fieldset").nth(0).get_by_label("4 –").check()
    page.locator("#latent-title").focus()
    page.keyboard.press("3")
    page.keyboard.press("ArrowRight")
    shows(page, 9)
    page.keyboard.press("1")
    assert page.locator("#rated").inner_text() == "3 windows of 2 latents rated"
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download").click()
    waiting.value.save_as(tmp_path / "ratings.csv")
    assert waiting.value.suggested_filename == "ratings-0-coder-a.csv"

    human = Human(path=tmp_path / "ratings.csv")
    assert [(r.latent, r.rating, r.hookpoint, r.rater) for r in human.ratings] == [
        (7, 4, "layers.9", "Ann, B."), (7, 3, "layers.9", "Ann, B."), (9, 1, "layers.9", "Ann, B.")
    ]  # fmt: skip

    def score(latent: int, text: str):
        asked = human.score(Explanation(text=text), make_examples(), context(None, latent=LatentId("layers.9", latent)))
        with ThreadPoolExecutor(1) as thread:  # the browser's driver keeps an event loop in this one
            return thread.submit(asyncio.run, asked).result()

    assert score(7, odd).values == {"rating": 3.5} and score(9, "words about 9").values == {"rating": 1.0}
    assert score(7, "another").status == "skipped"
    page.reload()
    page.wait_for_selector("fieldset")
    assert page.locator("#rated").inner_text() == "3 windows of 2 latents rated"


# --- what was asked, directions, layers, files of plots ---


def test_prompts_and_raw_replies_are_shown_when_a_fold_is_opened(report, visit):
    from playwright.sync_api import expect

    page = visit(report / "latents" / "0-coder-topk.html", "#latent=5")
    page.wait_for_selector(".judged")
    page.get_by_text("Prompt and raw reply of the explainer").click()
    page.locator(".call pre").first.wait_for()
    assert page.locator(".call pre").all_inner_texts() == [
        "[user]\nWhat of 5? the whale and the sea",
        "<b>words</b> \\u202e about 5",
    ]
    page.get_by_text("Prompts and raw replies of detection").click()
    page.get_by_text("Prompt 2 of 2").click()
    expect(page.locator(".call[open] pre.reply").last).to_have_text("the server is gone")
    page.locator("#latent").get_by_label("Explanation").select_option("random_explanation")
    expect(page.locator(".call")).to_have_count(0)
    page.get_by_text("Prompts and raw replies of detection").click()
    page.get_by_text("were not kept").wait_for()


def test_prompts_of_more_windows_than_can_be_told_are_shown_whole_and_so_are_those_of_an_earlier_layout(
    tmp_path, visit
):
    """Windows of 12 kB in characters of three bytes; the earlier layout had numbers of tokens, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = cell("a", [score_row("detection", 0.6)])
    tokens = [f" {'鯨' * 800}{k}" for k in range(5)]
    text = "".join(tokens)
    prompt = f"[user]\nWindow 1: {text}\nWindow 2: <<{tokens[0]}>>{text[803:]}"
    call = {"latent": 1, "step": "detection", "variant": "explanation", "call": 0, "reply": "[1, 0]", "status": "ok"}
    write_cell(tmp_path / "run", one, [1], tokens=tokens, calls=[{**call, "prompt": prompt}])
    file = tmp_path / "run" / "cells" / one.cell / "examples.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("token_ids", pa.array([[1, 2, 3, 4, 5]] * table.num_rows)), file)
    write_html(run_of(one), tmp_path / "run", tmp_path / "run" / "report")
    assert (tmp_path / "run" / "report" / "latents" / "0-coder-a" / "0.calls.js").stat().st_size < len(prompt) / 4
    page = visit(tmp_path / "run" / "report" / "latents" / "0-coder-a.html", "#latent=1")
    page.get_by_text("Prompts and raw replies of detection").click()
    page.locator(".call pre").first.wait_for()
    assert page.locator(".call pre").all_inner_texts() == [prompt, "[1, 0]"]
    assert page.locator(".judged .window").first.inner_text() == text


@pytest.fixture(scope="module")
def single(report, tmp_path_factory) -> Path:
    """The report as one file, in a folder of its own."""
    file = tmp_path_factory.mktemp("single") / "shared.html"
    done = CliRunner().invoke(main, ["view", str(report.parent), "--bundle", str(file)])
    assert done.exit_code == 0 and [*file.parent.iterdir()] == [file], done.output
    return file


def test_bundle_is_one_page_with_every_latent_in_it(single, visit):
    from playwright.sync_api import expect

    page = visit(single)
    page.get_by_label("Words in any cell").fill("about 105")
    page.locator("#search-found a").click()
    shows(page, 105)
    page.get_by_role("link", name="All latents").click()
    expect(page.locator("#latents tbody tr")).to_have_count(12)
    page.locator(".brand a").click()
    page.locator("#board tbody a", has_text="topk").click()
    page.get_by_role("link", name="5", exact=True).click()
    shows(page, 5)
    page.get_by_text("Prompt and raw reply of the explainer").click()
    expect(page.locator(".call pre").first).to_contain_text("What of 5?")
    page.keyboard.press("ArrowRight")
    shows(page, 6)
    again = visit(single, page.url[page.url.index("#") :])
    shows(again, 6)
    again.evaluate("location.hash = ''")
    again.locator("#agreement [data-go]").last.click()
    again.wait_for_selector(".judged")


def test_bundle_as_a_folder_has_every_page(report, tmp_path):
    done = CliRunner().invoke(main, ["view", str(report.parent), "--bundle", str(tmp_path / "run.zip")])
    assert done.exit_code == 0 and "unpack" in done.output
    shutil.unpack_archive(tmp_path / "run.zip", tmp_path)
    pages_ = {p.relative_to(report) for p in report.rglob("*") if p.is_file()}
    assert pages_ == {p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("*") if p.is_file()}
    refused = CliRunner().invoke(main, ["view", str(report.parent), "--bundle", str(tmp_path / "run.pdf")])
    assert refused.exit_code == 2 and ".html or .zip" in refused.output


def test_neighbours_promoted_tokens_and_neuronpedia_are_linked_where_known(report, visit):
    page = visit(report / "latents" / "0-coder-topk.html", "#latent=5")
    page.wait_for_selector(".judged")
    assert page.locator(".chips .token").all_inner_texts() == [" whale", "\\u202e<b>"]
    links = page.locator(".chips a")
    assert page.locator(".chips >> nth=1").inner_text().split() == ["6", "0.90", "999", "0.25"] and links.count() == 1
    there = page.get_by_role("link", name="Neuronpedia")
    assert there.get_attribute("href") == "https://www.neuronpedia.org/some-model/6-res-jb/5"
    links.click()
    shows(page, 6)
    other = visit(report / "latents" / "1-coder-jumprelu.html", "#latent=105")
    other.wait_for_selector(".judged")
    assert other.get_by_role("link", name="Neuronpedia").count() == 0 and other.locator(".chips").count() == 0


@pytest.mark.parametrize("id_", ["javascript:x/y", "a/b/../c", "a", '"><script>/x', "//evil.example/x"])
def test_an_odd_neuronpedia_id_makes_no_link(id_):
    from saeval.report.html.pages import neuronpedia

    assert neuronpedia(cell("a", []).model_copy(update={"coder": {"metadata": {"neuronpedia_id": id_}}})) == ""


def layered() -> RunResult:
    """Two architectures at three layers, and a random SAE at one."""
    cells = []
    for arch, values in {"topk": (0.6, 0.7, 0.8), "relu": (0.55, 0.58, 0.62)}.items():
        for layer, value in zip((3, 9, 12), values, strict=True):
            made = cell(f"{arch}{layer}", [score_row("detection", value), score_row("fuzzing", value)], arch=arch)
            cells.append(made.model_copy(update={"coder": {"hookpoint": f"model.layers.{layer}.mlp"}}))
    return run_of(*cells, cell("random_sae", [score_row("detection", 0.5)], "random_sae", arch="random", layer="9"))


def test_scores_are_drawn_by_layer_with_a_line_for_cells_that_differ_in_nothing_else():
    made = layered()
    axes = [
        c.model_copy(update={"axes": {"coder": c.coder.get("hookpoint", "x"), "arch": c.axes["arch"]}})
        for c in made.cells
    ]
    groups = plots.families(Series.of(axes[:-1], {}))
    assert [[plots.layer_of(s.cell) for s in some] for some in groups] == [[3, 9, 12], [3, 9, 12]]
    drawn = plots.by_layer(Leaderboard.of(made.model_copy(update={"cells": axes})), "detection", groups)
    assert (
        drawn.count("<polyline") == 2
        and "topk, layer 12: 0.800, 0.760 to 0.840" in drawn
        and drawn.count('class="chance"') == 1
    )
    assert plots.families(Series.of(made_run().cells, {})) == []


def test_layer_is_the_axis_or_the_first_number_of_the_hookpoint():
    def layer(hookpoint, **axes):
        return plots.layer_of(cell("a", [], **axes).model_copy(update={"coder": {"hookpoint": hookpoint}}))

    assert [
        layer("blocks.12.hook_resid_post"),
        layer("x", layer="3"),
        layer("layers.9", layer="4"),
        layer("16k_pt"),
    ] == [12, 3, 4, None]


def test_fuzzing_is_drawn_against_intervention_first():
    rows = [
        score_row(s, 0.6, plugin=f"saeval/{p} 0.1.0")
        for s, p in (("a", "embedding"), ("steer", "intervention"), ("f", "fuzzing"))
    ]
    assert index._pairs(Leaderboard.of(run_of(cell("x", rows), rank_by="a.balanced_accuracy")))[0] == ("f", "steer")


@pytest.mark.parametrize("format_", ["svg", "pdf", "png"])
def test_plots_are_written_as_self_contained_files(report, tmp_path, format_):
    (report.parent / "results.json").write_text(made_run().model_dump_json(by_alias=True))
    mark(report.parent)
    place = tmp_path / "plots"
    shutil.copytree(report.parent, tmp_path / "run")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "run"), "--plots", str(place), "-f", format_])
    assert done.exit_code == 0, done.output
    files_ = {p.name: p.read_bytes() for p in place.glob("*.*") if p.name != ".saeval"}
    assert f"against-detection.{format_}" in files_ and f"scatters-detection-fuzzing.{format_}" in files_
    for content in files_.values():
        assert content.startswith({"svg": b"<svg xmlns", "pdf": b"%PDF", "png": b"\x89PNG"}[format_])
        if format_ == "pdf":
            assert b"/Font" in content and b"/Image" not in content
        if format_ == "svg":
            assert b"var(" not in content and b"href" not in content and b"topk" in content


def test_hostile_names_do_nothing_to_files_of_plots(tmp_path):
    names = [*HOSTILE, "\ufffe\uffff", "\U000e0001"]
    made = run_of(*(cell(str(k), [score_row("detection", 0.5 + k / 50)], other=name) for k, name in enumerate(names)))
    (svg,) = write_plots(made, tmp_path, tmp_path)
    found = {element.tag.rpartition("}")[2] for element in ElementTree.parse(svg).iter()}
    assert found <= {"svg", "style", "g", "title", "text", "line", "rect", "circle", "polygon"}
    assert write_plots(made, tmp_path, tmp_path, "pdf")[0].read_bytes().startswith(b"%PDF")


def test_pdf_without_its_library_says_what_to_install(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(InputError, match=r"pip install 'saeval\[plots\]'"):
        write_plots(made_run(), report.parent, tmp_path / "plots", "pdf")
    assert not (tmp_path / "plots").exists()


# --- many runs on one page ---


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    made = layered()
    halves = {"one": made.cells[:3], "two": [*made.cells[3:], cell("none", [score_row("fuzzing", 0.9)], arch="topk")]}
    for name, cells_ in halves.items():
        (folder / name).mkdir()
        run = run_of(*cells_, run_id=name + HOSTILE[0])
        (folder / name / "results.json").write_text(run.model_dump_json(by_alias=True))
        if name == "one":
            for n, one in enumerate(run.cells):
                write_cell(folder / name, one, [100 * n + k for k in range(1, 4)])
            write_html(run, folder / name, folder / name / "report")
    done = CliRunner().invoke(
        main, ["leaderboard", str(folder / "one"), str(folder / "two"), "--html", str(folder / "board.html")]
    )
    assert done.exit_code == 0, done.output
    return folder


def ranks(page, table: int = 0) -> list[str]:
    return page.locator("#joined-tables table:not(details *)").nth(table).locator(".rank").all_inner_texts()


def test_joined_page_ranks_as_the_library_does_by_any_metric_and_within_groups(joined, visit):
    from playwright.sync_api import expect

    page = visit(joined / "board.html")
    board = join([joined / "one", joined / "two"])
    assert ranks(page) == [x.rank_text for x in board.groups(None)[""].standings]
    assert ranks(page)[:2] == ["1", "2"] and ranks(page)[-2:] == ["–", "base"]
    page.get_by_label("Rank by").select_option("fuzzing.balanced_accuracy")
    expect(page.locator("th[aria-sort]")).to_contain_text("fuzzing")
    by_fuzzing = join([joined / "one", joined / "two"], rank_by="fuzzing").groups(None)[""]
    assert ranks(page) == [x.rank_text for x in by_fuzzing.standings] and "rank=fuzzing.balanced_accuracy" in page.url
    page.get_by_role("button", name="detection").first.click()
    page.get_by_label("Group by").select_option("arch")
    groups = board.groups("arch")
    expect(page.locator("#joined-tables h3")).to_have_count(len(groups))
    expect(page.locator("th[aria-sort]").first).to_contain_text("detection")
    assert page.locator("#joined-tables h3").all_inner_texts() == [f"arch: {value}" for value in groups]
    assert [ranks(page, k) for k in range(3)] == [[x.rank_text for x in b.standings] for b in groups.values()]


def test_joined_page_ranks_by_lift_as_the_text_does_and_raw_scores_on_request(visit, tmp_path):
    for name, own, floor in (("high", 0.8, 0.7), ("low", 0.7, 0.45)):
        row = score_row("detection", own, 0.01, against=floor_sample(own, floor))
        (tmp_path / name).mkdir()
        run = run_of(cell(name, [row]), run_id=name)
        (tmp_path / name / "results.json").write_text(run.model_dump_json(by_alias=True))
    runs = [str(tmp_path / "high"), str(tmp_path / "low")]
    made = CliRunner().invoke(main, ["leaderboard", *runs, "--html", str(tmp_path / "board.html")])
    assert made.exit_code == 0, made.output
    (board,) = join(runs).groups(None).values()
    page = visit(tmp_path / "board.html")

    def order() -> list[str]:
        lines = page.locator("#joined-tables tbody tr").all_inner_texts()
        return ["high" if "high" in line else "low" for line in lines]

    assert board.ranking == "lift" and order() == [x.cell.axes["coder"] for x in board.standings] == ["low", "high"]
    shown = page.locator("#joined-tables tbody").inner_text()
    assert all(f"{board.row(x.cell, 'detection').lift:+.3f}" in shown for x in board.standings)
    page.get_by_label("Rank by").select_option("detection.balanced_accuracy")
    assert order() == ["high", "low"]


@pytest.fixture(scope="module")
def floored(tmp_path_factory) -> list[str]:
    """Two runs with lifts whose floors are pooled, of sizes that sort as numbers, with marks and missing scores."""
    folder, runs = tmp_path_factory.mktemp("floored"), []
    for name, own in (("one", (0.8, 0.74, 0.7)), ("two", (0.81, 0.73, 0.62))):
        cells_ = []
        for size, value in zip(("0.25", "10", "2"), own, strict=True):
            floor = floor_sample(value, value / 2 + 0.1, covariance=(0.02, 0.1, 0.0))
            rows = [score_row("detection", value, 0.03, against=floor), score_row("fuzzing", value - 0.2)]
            cells_.append(cell(f"{name}{size}", rows, size=size))
        missing = [score_row("fuzzing", None), score_row("embedding", 0.5, n=5, off=True)]
        few = score_row("detection", 0.6, against=floor_sample(0.6, 0.55, n=12))
        cells_.append(cell(f"{name}-base", [few, *missing], "random_sae", size="0.25"))
        (folder / name).mkdir()
        run = run_of(*cells_, run_id=name)
        (folder / name / "results.json").write_text(run.model_dump_json(by_alias=True))
        runs.append(str(folder / name))
    made = CliRunner().invoke(main, ["leaderboard", *runs, "--html", str(folder / "board.html")])
    assert made.exit_code == 0, made.output
    return [*runs, str(folder / "board.html")]


@pytest.mark.parametrize("facet", [None, "size", "run"])
@pytest.mark.parametrize("rank_by", ["detection", "detection.raw", "fuzzing"])
def test_joined_page_has_the_ranks_lifts_and_notes_of_the_text_boards(floored, visit, facet, rank_by):
    *runs, page_file = floored
    column_ = {
        "detection": "detection.balanced_accuracy.lift",
        "detection.raw": "detection.balanced_accuracy",
        "fuzzing": "fuzzing.balanced_accuracy",
    }[rank_by]
    page = visit(Path(page_file), f"#rank={column_}&group={facet or '-'}")
    boards = join(runs, rank_by=rank_by).groups(facet)
    if facet == "size":
        assert list(boards) == ["0.25", "2", "10"]
    heads = page.locator("#joined-tables h3").all_inner_texts()
    assert heads == [f"{facet}: {value}" for value in boards if facet]
    for k, board in enumerate(boards.values()):
        assert ranks(page, k) == [x.rank_text for x in board.standings]
        assert page.locator("#joined-tables ul").nth(k).locator("li").all_inner_texts() == board.notes
        rows = page.locator("#joined-tables table:not(details *)").nth(k).locator("tbody tr").all_inner_texts()
        for x, text in zip(board.standings, rows, strict=True):
            assert f"lift {board.row(x.cell, 'detection').lift:+.3f}" in text
    tests = page.locator("#joined-tables details tbody td").all_text_contents()
    assert tests == [text for board in boards.values() for found in board.against for text in found.texts]


def test_joined_plot_has_the_order_of_the_boards_above_it(floored, visit):
    page = visit(Path(floored[-1]), "#group=size&x=-&rank=detection.balanced_accuracy.lift")
    rows = page.locator("#joined-tables table:not(details *)").locator("tbody tr").all_inner_texts()
    drawn = page.locator("#joined-plots svg").get_attribute("aria-label").partition(": ")[2].split("; ")
    assert len(drawn) == len(rows) == 8
    for place, (row, point) in enumerate(zip(rows, drawn, strict=True), 1):
        *names, lift, _, at = point.split()
        assert all(name.strip(",") in row for name in names) and lift in row and int(at) == place


def test_joined_page_marks_scores_and_says_why_one_is_missing_and_filters_leave_ranks(floored, visit):
    from playwright.sync_api import expect

    *_, page_file = floored
    page = visit(Path(page_file))
    base = page.locator("#joined-tables tr.baseline").first.inner_text()
    lift = page.locator("#joined-tables tr.baseline td.score").first.inner_text()
    assert "0.460 to 0.540*≠" in base and "50 failed" in base and lift.splitlines()[1].endswith("*")
    before = ranks(page)
    sizes = page.locator("#joined-filters fieldset", has=page.locator("legend", has_text="size")).locator("label")
    assert sizes.all_inner_texts() == ["0.25", "2", "10"]
    sizes.nth(0).click()
    expect(page.locator("#joined-tables tbody tr")).to_have_count(4)
    assert ranks(page) == [before[k] for k in range(2, 6)]


def test_joined_page_filters_and_draws_facets_and_keeps_its_state_in_the_address(joined, visit):
    from playwright.sync_api import expect

    page = visit(joined / "board.html", "#x=&facet=arch&colour=hookpoint")
    assert page.locator("#joined-plots figure").count() == 3 and page.locator("#joined-plots .whisker").count() == 7
    page.get_by_role("group", name="arch", exact=True).get_by_label("relu").uncheck()
    expect(page.locator("#joined-count")).to_have_text("5 of 8 cells")
    assert page.locator("#joined-plots figure").count() == 2
    page.get_by_label("baselines").uncheck()
    expect(page.locator("#joined-count")).to_have_text("4 of 8 cells")
    again = visit(joined / "board.html", page.url[page.url.index("#") :])
    assert again.locator("#joined-count").inner_text() == "4 of 8 cells" and "base" not in ranks(again)
    assert again.evaluate("window.pwned") is None
    visit(joined / "board.html", "#rank=<b>&group=__proto__&not.arch=}{&x=constructor").wait_for_selector(".rank")


def test_joined_page_links_to_latents_and_searches_explanations_of_all_runs(joined, visit):
    from playwright.sync_api import expect

    page = visit(joined / "board.html")
    with_report = len(json.loads((joined / "one" / "results.json").read_text())["cells"])
    links = page.locator("#joined-tables .name-cell a")
    assert links.count() == with_report
    page.get_by_label("Words in any cell").fill("about 102")
    expect(page.locator("#search-found li")).to_have_count(1)
    page.locator("#search-found a").click()
    shows(page, 102)
    page.go_back()
    links.first.click()
    expect(page.locator("#latents tbody tr")).to_have_count(3)


def test_joined_page_refuses_what_cannot_be_compared_or_marks_it(joined, tmp_path):
    other = run_of(cell("x", [score_row("detection", 0.6)]), task_version="2.0", run_id="other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text(other.model_dump_json(by_alias=True))
    command = ["leaderboard", str(joined / "one"), str(tmp_path / "other"), "--html", str(tmp_path / "board.html")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2 and "task differs" in refused.output and not (tmp_path / "board.html").exists()
    assert CliRunner().invoke(main, [*command, "--mixed"]).exit_code == 0
    text = (tmp_path / "board.html").read_text()
    assert '<span class="badge">mixed</span>' in text and "task differs" in text
    assert CliRunner().invoke(main, [*command, "--mixed", "--match-l0", "32"]).exit_code == 2


VIEWS = {
    "joined": ("joined.html", "#facet=arch"), "index": ("index.html", ""), "list": ("latents/0-coder-topk.html", ""), "latent": ("latents/0-coder-topk.html", "#latent=5"),
    "rating": ("latents/0-coder-topk.html", "#latent=5&rate=1"),
}  # fmt: skip


WAIT = {"joined": ".rank", "rating": "fieldset", "latent": ".judged"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_accessible_by_the_rules_of_axe(report, visit, view, scheme):
    name, state = VIEWS[view]
    # The page's policy stands in the way of the checker's script alone, and is checked elsewhere.
    page = visit(report / name, state, color_scheme=scheme, bypass_csp=True)
    page.wait_for_selector(WAIT.get(view, "tbody a"))
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    if view == "latent":
        page.locator(".call pre").first.wait_for()
    assert violations(page) == []
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(report, visit, view):
    name, state = VIEWS[view]
    page = visit(report / name, state, viewport={"width": 340, "height": 700})
    page.wait_for_selector(WAIT.get(view, "tbody a"))
    assert page.evaluate("document.documentElement.scrollWidth") == 340


def test_without_its_files_a_page_says_which_is_missing(tmp_path, browser):
    _, folder = whole_run(tmp_path)
    shutil.rmtree(folder / "latents" / "0-coder-topk")
    page = browser.new_page()
    page.goto((folder / "latents" / "0-coder-topk.html").as_uri() + "#latent=5")
    page.wait_for_selector("[role=alert]")
    assert "0-coder-topk/0.js" in page.locator("[role=alert]").inner_text()
    page.close()


def test_a_real_run_writes_its_report_and_so_does_the_command(tmp_path, monkeypatch, visit):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))

    def run():
        with truthful_server() as server:
            return saeval.run(spec(server), out=tmp_path / "run")

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(run).result()
    (tmp_path / "run" / "report" / "index.html").unlink()
    shown = CliRunner().invoke(main, ["report", str(tmp_path / "run")])
    assert shown.exit_code == 0 and "index.html" in shown.output
    page = visit(tmp_path / "run" / "report" / "index.html")
    value = Leaderboard.of(done).row(done.cells[0], "detection").value
    assert f"{value:.3f}" in column(page, "#board", 3) and page.locator(".badge").first.inner_text() == "synthetic"
    page.locator("#board tbody a").click()
    page.locator("#latents tbody a").first.click()
    page.wait_for_selector(".judged")
    assert page.locator("#latent mark").count() > 5
    assert re.search(r"[01]\.\d{3} \[0\.\d\d [01]\.\d\d\]", page.locator("#latent").inner_text())  # its own interval


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A report whose cell counts as large, in parts of 20 lines and 2 files per folder."""
    folder = tmp_path_factory.mktemp("large")
    one = cell("big", [score_row(s, 0.6) for s in SCORERS])
    write_cell(folder, one, range(150, 0, -1))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LARGE": 100, "_ROWS": 20, "_POSTINGS": 30}.items():
            patch.setattr(paged, name, value)
        write_html(run_of(one), folder, folder / "report")
    return folder


def test_large_cell_lists_sorts_filters_and_opens_latents_from_its_parts(large, visit):
    place = large / "report" / "latents" / "0-coder-big.html"
    assert "words about" not in place.read_text()
    page = visit(place)
    assert column(page, "#latents", 1)[:2] == ["150", "149"] and page.locator("#page-at").inner_text() == "page 1 of 3"
    for number in (2, 3):
        page.get_by_role("button", name="Next page").click()
        page.get_by_text(f"page {number} of 3").wait_for()
    assert column(page, "#latents", 1)[-1] == "1"
    for order in ("latent asc", "detection desc"):
        page.locator("#list-order").select_option(order)
        key, _, direction = order.partition(" ")
        page.wait_for_selector(f'th[data-key="{key}"][aria-sort^="{direction}"]')
        found = column(page, "#latents", 1 if order.startswith("latent") else 3)
        assert found == sorted(found, key=float, reverse=order.endswith("desc")) and len(found) == 50
    page.locator("#list-order").select_option("")
    page.locator("#list-filter").fill("about 14")
    page.get_by_text("12 of 150 latents").wait_for()
    assert column(page, "#latents", 1) == [
        "149",
        "148",
        "147",
        "146",
        "145",
        "144",
        "143",
        "142",
        "141",
        "140",
        "114",
        "14",
    ]
    page.get_by_role("link", name="148", exact=True).click()
    shows(page, 148)
    page.locator('a[rel="next"]').click()
    shows(page, 147)
    page.wait_for_selector(".judged")
    other = visit(place, "#latent=7")
    shows(other, 7)
    assert "words about 7" in other.locator(".explanation").inner_text()


def test_explanations_of_large_cells_are_searched_from_the_first_page_and_in_a_bundle(large, visit):
    bundle(large, large / "one.html")
    for file in (large / "report" / "index.html", large / "one.html"):
        page = visit(file, "#find=words+bout+13")
        page.wait_for_selector("#search-found a")
        assert page.locator("#search-count").inner_text() == "12 latents"
        page.locator("#search-found a").nth(1).click()
        shows(page, 138)


@pytest.mark.slow
def test_thousands_of_latents_are_written_and_open_quickly(tmp_path, visit):
    from playwright.sync_api import expect

    one = cell("big", [score_row(s, 0.6) for s in SCORERS])
    write_cell(tmp_path, one, range(1800), tokens=[" the", " sea"] * 16)
    began = time.process_time()
    write_html(run_of(one), tmp_path, tmp_path / "report")
    assert time.process_time() - began < 10
    page = visit(tmp_path / "report" / "latents" / "0-coder-big.html", "#sort=gap&dir=desc&page=3")
    assert page.locator("#page-at").inner_text() == "page 3 of 36"
    times = []
    for latent in (1799, 900, 7):  # the quickest of three, since other work can hold up any one
        began = time.perf_counter()
        other = visit(tmp_path / "report" / "latents" / "0-coder-big.html", f"#latent={latent}")
        other.wait_for_selector(".judged")
        times.append(time.perf_counter() - began)
    assert min(times) < 2, times
    page.get_by_role("button", name="Next page").click()
    expect(page.locator("#page-at")).to_have_text("page 4 of 36")
    assert page.locator("#latents tbody tr").count() == 50
