"""Explains and scores planted latents with saeval: `end_to_end_run FOLDER URL LATENTS OUT`, prints what it found."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(folder: str, url: str, latents: int, out: Path) -> None:
    """Run saeval's defaults on as many windows as Delphi judges, 64 calls at once."""
    import saeval

    os.environ["SAEVAL_CACHE"] = str(out / "cache")
    model = {"model": "openai_compatible/m", "api_base": url, "concurrency": 64}
    task = {
        "saeval": 1, "task": "end-to-end", "version": "1.0",
        "llms": {"explainer": model, "judge": model},
        "source": {"use": "delphi", "with": {"path": f"{folder}/latents/layer", "tokenizer": f"{folder}/tokenizer"}},
        "latents": {"n": latents},
        "sampler": {"use": "random", "with": {"explain": 40, "score": 100, "non_activating": {"n": 100}}},
        "explainer": "default", "scorers": {"detection": {}, "fuzzing": {}}, "baselines": [],
    }  # fmt: skip
    result = saeval.run(task, out=out / "run")
    rows = [row for row in result.cells[0].scores if row.metric == "balanced_accuracy"]
    windows, answered = sum(row.windows for row in rows), sum(row.answered for row in rows)
    scores = {row.scorer: row.value for row in rows}
    print(json.dumps({"scores": scores, "windows": windows, "lost": windows - answered}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
