"""Sparse coders in the files of other libraries."""

from __future__ import annotations

import json
from collections import OrderedDict

import torch
from tiny import D

F, K = 40, 4  # latents, and how many of them fire


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


def dictionary(folder, kind, **trainer):
    """Write an SAE as dictionary_learning does."""
    config = {
        "trainer": {
            "dict_class": kind, "activation_dim": D, "dict_size": F, "layer": 1, "lm_name": "tiny",
            "submodule_name": "resid_post_layer_1", **({"k": K} if "TopK" in kind else {}), **trainer,
        },
        "buffer": {"ctx_len": 128, "io": "out"},
    }  # fmt: skip
    encoder = {"encoder.weight": random(F, D), "encoder.bias": random(F)}
    decoder = {"decoder.weight": random(D, F, seed=1)}
    plain = {"W_enc": random(D, F), "b_enc": random(F), "W_dec": random(F, D, seed=1), "b_dec": random(D)}
    k, threshold = {"k": torch.tensor(K)}, {"threshold": torch.tensor(0.2)}
    tensors = {
        "AutoEncoder": {"bias": random(D), **encoder, **decoder},
        "AutoEncoderNew": {**encoder, **decoder, "decoder.bias": random(D)},
        "GatedAutoEncoder": {
            "decoder_bias": random(D), "encoder.weight": random(F, D), **decoder,
            **{name: random(F, seed=i) for i, name in enumerate(("r_mag", "gate_bias", "mag_bias"))},
        },
        "JumpReluAutoEncoder": {**plain, "threshold": random(F, seed=5).abs()},
        "AutoEncoderTopK": {"b_dec": random(D), **k, "threshold": torch.tensor(-1.0), **encoder, **decoder},
        "BatchTopKSAE": {"b_dec": random(D), **k, **threshold, **encoder, **decoder},
        "MatryoshkaBatchTopKSAE": {**plain, **k, **threshold, "group_sizes": torch.tensor([10, 30])},
    }[kind]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(OrderedDict(tensors), folder / "ae.pt")
    return folder
