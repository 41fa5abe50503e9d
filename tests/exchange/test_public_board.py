"""A public board is built from runs of folders and of the hub, and ranks nothing across judges and corpora."""

from __future__ import annotations

import json
import re

import pytest
from browsers import chromium, violations
from click.testing import CliRunner
from made_cells import cell_of, write_run

from saeval import InputError
from saeval._util import write_checksums
from saeval.cli.group import main
from saeval.exchange import add_runs, build

L0 = {"topk": 32.0, "jumprelu": 71.5}


def made(place, name, judge="openai/one", corpus="aaaa1111", day=1, shift=0.0, value=0.6):
    """Write a run of two contestants and a baseline."""
    cells = []
    for k, arch in enumerate(L0):
        scores = {"detection.balanced_accuracy": {i: value + 0.1 * k + i % 5 / 50 for i in range(30)}}
        coder = {"plugin": "saeval/sae_lens 0.1.0", "architecture": arch, "hookpoint": f"layers.{9 + k}"}
        cell = cell_of(arch, scores, corpus=corpus, coder=coder, measures={"l0": L0[arch]})
        rows = [row.model_copy(update={"judge": judge, "verdict": "weak"}) for row in cell.scores]
        cells.append((cell.model_copy(update={"scores": rows}), scores, {}))
    floor = {"detection.balanced_accuracy": {i: 0.5 + i % 5 / 50 for i in range(30)}}
    base = cell_of("neurons", floor, corpus=corpus, baseline="neurons")
    rows = [row.model_copy(update={"judge": judge}) for row in base.scores]
    cells.append((base.model_copy(update={"scores": rows}), floor, {}))
    write_run(place / name, *cells)
    write_checksums(place / name)
    (place / name / "run.json").write_text(json.dumps({"status": "done", "updated": 1_790_000_000 + 86_400 * day}))
    return str(place / name)


def pages(board):
    return {p.relative_to(board / "site").as_posix(): p.read_text() for p in (board / "site").rglob("*.html")}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Four runs: two alike, one of another judge, one of another corpus."""
    place = tmp_path_factory.mktemp("board")
    runs = [
        made(place, "first"),
        made(place, "second", day=2, value=0.62),
        made(place, "third", judge="hf/two", day=3),
        made(place, "fourth", corpus="bbbb2222", day=4),
    ]
    add_runs(place / "board", runs)
    build(place / "board")
    return place / "board"


def test_each_judge_and_corpus_has_a_board_of_its_own_and_each_sae_a_page(board):
    found = pages(board)
    boards = [text for name, text in found.items() if name.startswith("boards/")]
    assert len(boards) == 3
    for text in boards:
        cells = json.loads(re.search(r'id="joined">(.*?)</script>', text, re.DOTALL)[1])["cells"]
        assert (
            len({cell["facets"]["judge"] for cell in cells}) == len({cell["facets"]["corpus"] for cell in cells}) == 1
        )
        assert any(cell["baseline"] for cell in cells)
    assert sorted(len(re.findall(r'"baseline":false', text)) for text in boards) == [2, 2, 4]
    saes = {name: text for name, text in found.items() if name.startswith("saes/")}
    assert len(saes) == 2
    (topk,) = (text for name, text in saes.items() if "topk" in name)
    assert [line[:10] for line in re.findall(r'<th scope="row">(20\d\d-\d\d-\d\d)', topk)] == sorted(
        re.findall(r'<th scope="row">(20\d\d-\d\d-\d\d)', topk), reverse=True
    )
    assert len(re.findall("boards/face-off", topk)) == 4
    for text in found.values():
        assert str(board.parent) not in text


def test_run_that_goes_on_is_replaced_and_another_of_its_name_is_kept_apart(tmp_path):
    first = made(tmp_path, "run")
    assert add_runs(tmp_path / "board", [first]) == ["run"]
    assert add_runs(tmp_path / "board", [first]) == ["run"]
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", "run", judge="hf/two")
    results = (tmp_path / "other" / "run" / "results.json").read_text().replace("0123456789abcdef", "f" * 16)
    (tmp_path / "other" / "run" / "results.json").write_text(results)
    assert add_runs(tmp_path / "board", [other]) == ["run-2"]
    assert sorted(json.loads((tmp_path / "board" / "board.json").read_text())["runs"]) == ["run", "run-2"]


def test_commands_say_what_they_did_and_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "runs", "one")

    def call(*arguments, code=0):
        done = CliRunner().invoke(main, ["board", *arguments])
        assert done.exit_code == code, done.output
        return done

    assert "added     one" in call("add", "runs").stdout
    assert json.loads(call("build", "--json").stdout)["site"] == "board/site/index.html"
    assert "has no runs" in call("build", "nowhere", code=2).stderr
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    assert "that saeval did not create" in call("add", "runs", "--to", "precious", code=2).stderr
    (tmp_path / "board" / "board.json").write_text('{"format": "saeval.board/1", "title": "x", "runs": {"../x": {}}}')
    assert "not a run" in call("build", code=2).stderr


def test_hostile_names_stay_text(tmp_path):
    run = made(tmp_path, "run", judge="<script>alert(1)</script>")
    add_runs(tmp_path / "board", [run])
    build(tmp_path / "board")
    assert all("<script>alert" not in text for text in pages(tmp_path / "board").values())


def test_unscored_run_is_refused(tmp_path):
    write_run(tmp_path / "run")
    with pytest.raises(InputError, match="has no scores yet"):
        add_runs(tmp_path / "board", [str(tmp_path / "run")])


@pytest.mark.slow
def test_board_in_a_browser_filters_and_leads_to_saes_and_boards(board):
    with chromium() as browser:
        page = browser.new_context(bypass_csp=True).new_page()
        said = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((board / "site" / "index.html").as_uri())
        assert page.inner_text("#count") == "8 of 8 results"
        page.select_option("select[data-key=judge]", "hf/two")
        assert page.inner_text("#count") == "2 of 8 results"
        page.fill("#l0-from", "50")
        assert page.inner_text("#count") == "1 of 8 results"
        assert violations(page) == []
        page.click("#saes tbody tr:not([hidden]) th a")
        assert page.inner_text("h1") == "jumprelu" and page.locator("tbody tr").count() == 4
        assert violations(page) == []
        page.click("td a")
        page.wait_for_selector("#joined-tables table")
        assert not said
