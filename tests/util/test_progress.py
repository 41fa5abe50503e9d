"""What a run shows of itself: the same story in every style."""

from __future__ import annotations

import json

import pytest
from planted_run import spec, truthful_server

import saeval
from saeval._util.progress import Plain, display


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))

    def run(to):
        with truthful_server() as server:
            task = spec(server, baselines=[], scorers={"detection": {}})
            saeval.run(task, out=tmp_path / "run", limit=2, display=to)
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return run


def test_events_are_json_lines_that_begin_count_and_end_each_stage(shown):
    events = [json.loads(line) for line in shown(display("json")).splitlines()]
    begun = [event["stage"] for event in events if event["event"] == "begin"]
    ended = [event["stage"] for event in events if event["event"] == "end"]
    assert len(begun) >= 3 and sorted(begun) == sorted(ended)
    for stage in begun:
        counts = [(e["done"], e["total"]) for e in events if e["event"] == "update" and e["stage"] == stage]
        assert counts == sorted(counts) and counts[-1][0] == counts[-1][1], stage


def test_lines_say_how_far_each_stage_came(shown):
    lines = shown(display("plain")).splitlines()
    assert any("detection" in line and "2/2 latents" in line for line in lines)
    assert all(line.startswith("[") for line in lines)


def test_lines_do_not_come_with_every_item(capsys):
    plain = Plain(every=3600)
    with plain.stage("collect", total=1000, unit="tokens") as stage:
        for _ in range(1000):
            stage.advance(failed=stage.done >= 990)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("collect: 1,000/1,000 tokens, 10 failed")


def test_bars_show_counts_and_failures_and_take_no_name_for_markup(capsys):
    rich = display("rich")
    with rich.shown(), rich.stage("score [red]x[/nothing]", total=2) as stage:
        stage.advance()
        stage.advance(failed=True)
        rich.say("look: [bold]this[/nothing]")
    text = capsys.readouterr().err
    assert "[red]x[/nothing]" in text and "2/2" in text and "1 failed" in text and "look: [bold]this[/nothing]" in text


def test_without_a_terminal_lines_are_shown_and_nothing_at_all_on_request(shown):
    assert isinstance(display(), Plain)
    assert shown(display("none")) == ""
