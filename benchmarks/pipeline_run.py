"""Runs six cells against a server whose address is given, with 64 calls allowed in flight: `pipeline_run URL
EXECUTOR`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

PLACES = 64
"""Calls that may be in flight."""


def main(url: str, executor: str) -> None:
    """Run the task in a folder and with a cache of its own."""
    import saeval

    model = {"model": "openai_compatible/m", "api_base": url, "concurrency": PLACES}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAEVAL_CACHE"] = f"{folder}/cache"
        task = {
            "saeval": 1, "task": "pipeline", "version": "1.0",
            "llms": {"explainer": model, "judge": model},
            "matrix": {"text": [{"id": f"text-{i}", "seed": i} for i in range(6)]},
            "source": {"use": "synthetic", "with": {"n_latents": 40, "documents": 60, "seed": "${matrix.text.seed}"}},
            "latents": {"n": 32, "min_windows": 20},
            "sampler": {"use": "random", "with": {"explain": 10, "score": 20, "non_activating": {"n": 20}}},
            "explainer": "default", "scorers": {"detection": {}, "fuzzing": {}},
            "run": {"executor": executor, **({"workers": 2} if executor == "ray" else {})},
        }  # fmt: skip
        saeval.run(task, out=Path(folder) / "run")
    print(json.dumps({"done": True}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
