"""Samples latents with Delphi's LatentDataset: `sample.py FOLDER LATENTS.npy…`; prints what each list took as JSON."""

import json
import sys
import time

import numpy as np
import stubs  # noqa: F401  (before delphi: it stands in for what that imports)
import torch
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents import LatentDataset


class Words:
    """What LatentDataset asks of a tokenizer, as a look-up: decoding costs it next to nothing."""

    def __init__(self, vocabulary: int):
        self.words = [f" w{i}" for i in range(vocabulary)]

    def batch_decode(self, tokens: torch.Tensor) -> list[str]:
        return [self.words[i] for i in tokens.tolist()]


folder, *lists = sys.argv[1:]
taken = []
for latents in lists:
    dataset = LatentDataset(
        folder,
        SamplerConfig(n_examples_train=40, n_examples_test=100),
        ConstructorConfig(n_non_activating=100),
        tokenizer=Words(5_000),
        modules=["layer"],
        latents={"layer": torch.from_numpy(np.load(latents))},
    )
    began = time.process_time()
    windows = [len(r.train) + len(r.test) + len(r.not_active) for r in dataset]
    taken.append({"cpu": time.process_time() - began, "latents": len(windows), "windows": sum(windows)})
print(json.dumps(taken))
