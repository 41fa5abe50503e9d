"""Explains and scores with Delphi's process_cache: `score.py FOLDER URL LATENTS OUT AT_ONCE`; prints what it lost.

AT_ONCE latents are worked on together; 0 is what Delphi's command line does with a server.
"""

import asyncio
import functools
import json
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import stubs  # noqa: F401  (before delphi: it stands in for what that imports)

for name in ("vllm.inputs", "vllm.outputs", "plotly", "plotly.express", "plotly.io", "plotly.graph_objects", "kaleido"):
    sys.modules[name] = MagicMock()
import delphi.__main__ as program  # noqa: E402
import torch  # noqa: E402
from delphi.clients import OpenRouter  # noqa: E402
from delphi.config import CacheConfig, ConstructorConfig, RunConfig, SamplerConfig  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

folder, url, latents, out, at_once = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
os.environ["OPENROUTER_API_KEY"] = "none"
program.OpenRouter = functools.partial(OpenRouter, base_url=f"{url}/chat/completions")
if at_once:
    run = program.Pipeline.run
    program.Pipeline.run = lambda self, _=0: run(self, at_once)
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
# transformers 5 decodes a vector of ids to one string, and Delphi would see no marks; it asks for one string per token
tokenizer.batch_decode = lambda ids: [tokenizer.decode([i]) for i in ids.tolist()]
config = RunConfig(
    cache_cfg=CacheConfig(),
    constructor_cfg=ConstructorConfig(n_non_activating=100, min_examples=200),
    sampler_cfg=SamplerConfig(n_examples_train=40, n_examples_test=100),
    model="m",
    sparse_model="x",
    hookpoints=["layer"],
    explainer_model="m",
    explainer_provider="openrouter",
    scorers=["detection", "fuzz"],
    num_examples_per_scorer_prompt=5,
    verbose=False,
    pipeline_num_proc=at_once or 1,
)
died = ""
try:
    asyncio.run(
        program.process_cache(
            config,
            Path(folder, "latents"),
            out / "explanations",
            out / "scores",
            ["layer"],
            tokenizer,
            torch.arange(latents),
        )
    )
except Exception as error:  # noqa: BLE001 - whatever it dies of is what is measured
    died = repr(error)
windows = [w for file in sorted((out / "scores").rglob("*.txt")) for w in json.loads(file.read_text())]
lost = sum(window["prediction"] is None for window in windows)
print(json.dumps({"died": died, "windows": len(windows), "lost": lost}))
