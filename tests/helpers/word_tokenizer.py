"""A tokenizer of whole words."""

from __future__ import annotations

import re
from importlib.resources import files

from saeval.testing.toys import make_examples


def word_tokenizer():
    """Words and punctuation marks, each a token; white space is none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    prompt = files("saeval_plugins.prompts").joinpath("simulation_all_at_once.md").read_text()
    words = re.findall(r"\w+|[^\w\s]+", " ".join([prompt, *(w.text for w in make_examples().activating)]))
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<bos>", "<unk>", *"0123456789", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")
