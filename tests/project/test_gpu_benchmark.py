"""The session on a GPU runs on a CPU with tiny shapes, so that it does not fail where minutes are counted."""

from __future__ import annotations

import json

import pytest
import torch

gpu = pytest.importorskip("benchmarks.gpu")


def test_session_on_a_gpu_runs_dry(tmp_path, monkeypatch):
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take most of the time
    monkeypatch.setattr(gpu, "TINY", {name: size._replace(tokens=1024) for name, size in gpu.TINY.items()})
    assert gpu.main(["agree", "collect-gpt2", "sort-gpt2", "oom", "judge", "--tiny", "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    said = {line["what"]: line for line in lines}
    for precision in ("bf16", "tf32"):
        missed = said[f"screening gpt2 in {precision}, firings missed"]
        assert missed["value"] == 0 < missed["firings"]
    assert said["CPU against device, screened"]["on_one_side"] == 0
    collected = [line for line in lines if line["what"].startswith("collect gpt2")]
    assert {line["screen"] for line in collected} == {None, "bf16", "tf32"}
    assert said["sorting on the device gpt2"]["store_is_identical"]
    assert [line["padding"] > 0 for line in collected if line.get("batch_tokens") == "auto"] == [
        False,
        True,
    ]  # then ragged
    assert not any("failed" in line for line in lines)


def test_session_begins_nothing_when_its_time_is_over(tmp_path):
    assert gpu.main(["limits", "--tiny", "--minutes", "-1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1])["skipped"] == "no time left"
