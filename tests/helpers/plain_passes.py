"""Forward passes without a cache, which steered ones are held against."""

from __future__ import annotations

import torch


def brute_force(model, point, tokens, direction, factor, first):
    """Log-probabilities after one row: no cache, the direction added at the block from token `first` on."""

    def add(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[:, first:] += factor * direction
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = dict(model.base_model.named_modules())[point].register_forward_hook(add)
    try:
        with torch.no_grad():
            return model(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1)
    finally:
        handle.remove()
