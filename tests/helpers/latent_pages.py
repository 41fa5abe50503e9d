"""Reads the files that latents' pages are made of, as a browser does."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np


def latents_of(text):
    """What a file of latents holds, with the tokens of its windows in their places."""
    details, numbers = re.fullmatch(r'saevalLatents\(0,"(.*)","(.*)"\);\n', text).groups()
    held, tokens = (gzip.decompress(bytes_of(part)) for part in (details, numbers))
    content = json.loads(held)
    low, high = np.frombuffer(tokens, np.uint8).reshape(content["planes"], -1).astype(int)
    words = iter([content["words"][number] for number in low + 256 * high])
    for latent in content["latents"]:
        for groups in (latent["windows"], latent["seen"]):
            for _, windows in groups:
                for window in windows:
                    window[3] = [next(words) for _ in range(window[3])]
    assert not list(words)
    return [{**latent, "windows": dict(latent["windows"])} for latent in content["latents"]]


def bytes_of(dense):
    """Bytes that characters hold, 15 bits each, after a digit that says how many bytes too many there are."""
    bits = "".join(f"{ord(character) - 0x4000:015b}" for character in dense[1:])
    size = len(bits) // 8 - int(dense[0])
    return bytes(int(bits[at : at + 8], 2) for at in range(0, 8 * size, 8))


def judgements(judged):
    """Lines of judgements by scorer and variant, from columns; a column of equal values holds one."""
    return {
        scorer: {variant: list(zip(*lists(columns), strict=True)) for variant, columns in variants.items()}
        for scorer, variants in judged.items()
    }


def lists(columns):
    """Columns of one length."""
    n = max([1, *(len(column) for column in columns if isinstance(column, list))])
    return [column if isinstance(column, list) else [column] * n for column in columns]
