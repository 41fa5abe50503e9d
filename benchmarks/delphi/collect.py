"""Delphi's LatentCache over the generated tokens: `collect.py FOLDER`; prints CPU ms per token by setting as JSON."""

import json
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import stubs  # noqa: F401
import torch
from delphi.latents import LatentCache
from delphi.sparse_coders.custom.gemmascope import JumpReluSae
from delphi.sparse_coders.load_sparsify import sae_dense_latents
from safetensors.torch import load_file
from transformers import AutoModel

K, THRESHOLD, BATCH, SPLITS = 32, 0.45, 8, 5
PLACES = {"last": ("last", "layers.3"), "early": ("early", "layers.1"), "subset": ("last", "layers.3")}


class TopK:
    """A top-k coder with the interface of sparsify's."""

    def __init__(self, decoder):
        self.decoder, self.num_latents = decoder, len(decoder)

    def encode(self, x):
        values, indices = torch.nn.functional.linear(x, self.decoder).topk(K, dim=-1, sorted=False)
        return SimpleNamespace(top_acts=values, top_indices=indices)


def jumprelu(decoder):
    sae = JumpReluSae(decoder.shape[1], len(decoder))
    sae.load_state_dict(
        {
            "W_enc": decoder.T.contiguous(),
            "W_dec": decoder,
            "threshold": torch.full((len(decoder),), THRESHOLD),
            "b_enc": torch.zeros(len(decoder)),
            "b_dec": torch.zeros(decoder.shape[1]),
        }
    )
    return sae.requires_grad_(False)


torch.set_num_threads(1)  # as on the other sides
folder = Path(sys.argv[1])
decoder = load_file(folder / "coder.safetensors")["decoder"]
tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
chosen = torch.from_numpy(np.load(folder / "chosen.npy"))
found = {}
for setting, (name, place) in PLACES.items():
    model = AutoModel.from_pretrained(folder / name).eval().requires_grad_(False)
    encode = jumprelu(decoder).encode if setting == "subset" else partial(sae_dense_latents, sae=TopK(decoder))
    with torch.no_grad():
        model(tokens[:BATCH])  # the first pass sets things up
    with tempfile.TemporaryDirectory() as out:
        began = time.process_time()
        filters = {place: chosen} if setting == "subset" else None
        cache = LatentCache(model, {place: encode}, BATCH, filters=filters, log_path=Path(out))
        cache.run(tokens.numel(), tokens)
        cache.save_splits(SPLITS, Path(out))
        found[setting] = 1000 * (time.process_time() - began) / tokens.numel()
    found.setdefault("peak_rss_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(found))
