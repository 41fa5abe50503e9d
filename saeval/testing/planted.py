"""Provides planted latents that fire on known words, and scripted models that follow explanations literally."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saeval._util import InputError, derive_rng
from saeval.activations import ActivationStore, ActivationWriter, TokenDataset
from saeval.records import Request
from saeval.testing.toys import FILLER, PLANTED, ScriptedLLM

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WRITTEN = 10  # words per written text
_CONTEXTS, _TEXT = 2, 128  # contexts per document, text tokens per context
_RATE = 0.01  # share of tokens on which a latent fires, which is in about a quarter of all windows of 32 tokens


def planted_explanation(latent: int) -> str:
    """Return the true explanation of a planted latent."""
    return f"the word '{PLANTED[latent]}'"


def planted_tokens(n_latents: int, documents: int, seed: int) -> tuple[TokenDataset, NDArray[np.int64]]:
    """Generate documents of simple words, with the planted latent that fires on each token.

    Returns:
        The documents, and the latent of each token or -1.  [contexts, length]

    Raises:
        InputError: If there are fewer words to plant than latents.
    """
    if not 1 <= n_latents <= len(PLANTED):
        raise InputError(f"{n_latents} planted latents: the number must be between 1 and {len(PLANTED)}")
    rng = derive_rng(seed, "planted", n_latents, documents)
    shape = (documents * _CONTEXTS, 1 + _TEXT)
    is_planted = rng.random(shape) < min(_RATE * n_latents, 0.4)
    latent = np.where(is_planted, rng.integers(n_latents, size=shape), -1)
    lengths = np.full(shape[0], shape[1], dtype=np.int32)
    lengths[_CONTEXTS - 1 :: _CONTEXTS] -= rng.integers(0, _TEXT // 2, size=documents, dtype=np.int32)
    mask = (np.arange(shape[1]) < lengths[:, None]) & (np.arange(shape[1]) > 0)
    latent[~mask] = -1
    # Token 0 is BOS and padding, followed by the filler words and the planted words.
    filler = rng.integers(1, 1 + len(FILLER), size=shape)
    tokens = np.where(mask, np.where(latent >= 0, 1 + len(FILLER) + latent, filler), 0).astype(np.int32)
    words = (*FILLER, *PLANTED[:n_latents])
    dataset = TokenDataset(
        tokens=tokens,
        lengths=lengths,
        mask=mask,
        documents=np.repeat(np.arange(documents, dtype=np.int32), _CONTEXTS),
        document_names=tuple(f"document {i}" for i in range(documents)),
        vocabulary={0: b"", **{i: f" {word}".encode() for i, word in enumerate(words, 1)}},
        lead=1,
    )
    return dataset, latent


def plant(writer: ActivationWriter, *, n_latents: int = 16, documents: int = 100, seed: int = 0) -> None:
    """Write planted latents: latent i fires on the i-th planted word, with strengths 1 to 4.

    Args:
        writer: The writer of the store.
        n_latents: Number of latents.
        documents: Number of documents, with two contexts of 128 tokens; each latent fires in about two windows of 32
            tokens per document.
        seed: Seed of the documents.

    Raises:
        InputError: If there are fewer words to plant than latents.
    """
    dataset, latent = planted_tokens(n_latents, documents, seed)
    strength = derive_rng(seed, "planted strengths").uniform(1, 4, size=latent.shape).astype(np.float32)
    begin = writer.start(dataset, n_latents)
    writer.note(hookpoint="planted", subject="planted words", architecture="planted")
    for row in range(begin, len(latent)):
        offset = np.flatnonzero(latent[row] >= 0)
        writer.add(row * latent.shape[1] + offset, latent[row, offset], strength[row, offset])
        writer.advance(row + 1)


def planted_store(path: Path, *, n_latents: int = 16, documents: int = 100, seed: int = 0) -> ActivationStore:
    """Create a store of planted latents; see `plant`.

    Args:
        path: Directory to create.
        n_latents: Number of latents.
        documents: Number of documents.
        seed: Seed of the documents.

    Example:
        >>> store = planted_store(Path("store"), n_latents=4, documents=20)
        >>> store.n_latents, planted_explanation(0), bool(store.firings.all())
        (4, "the word 'harbor'", True)
    """
    writer = ActivationWriter(path)
    plant(writer, n_latents=n_latents, documents=documents, seed=seed)
    return writer.finish()


def rule_judge(*, scores: bool = False) -> ScriptedLLM:
    """Return a judge that follows the explanation literally, for detection and fuzzing.

    It reads prompts whose last turn contains a line `Explanation: …` that names words, as in `the word 'harbor'` or
    `The words: harbor, lantern`, and numbered windows (`Window 3: …`). A window without marks matches if it contains
    one of the words; a window with marks matches if every marked piece contains one of the words. An explanation that
    names no words matches nothing.

    Args:
        scores: Whether it also scores continuations: an explanation is likely after a prompt whose last paragraph
            begins with a matching window, on a separate line, and unlikely after others.

    Example:
        >>> import asyncio
        >>> prompt = "Explanation: the word 'harbor'\\nWindow 1: the old harbor\\nWindow 2: a candle"
        >>> asyncio.run(rule_judge().complete(Request.of(prompt))).text
        '[1, 0]'
    """
    return ScriptedLLM(_judge_list, _judge_one if scores else None)


def rule_writer() -> ScriptedLLM:
    """Return a writer that follows the explanation literally, for generation.

    It reads prompts whose last turn contains a line `Explanation: …` that names words, as for `rule_judge`, and `Write
    10 pairs`. Each text consists of simple words and one of the named words; its twin has another simple word instead.
    If the explanation names no words, texts consist of simple words only.

    Example:
        >>> import asyncio
        >>> prompt = "Explanation: the word 'harbor'\\nWrite 2 pairs"
        >>> asyncio.run(rule_writer().complete(Request.of(prompt))).text.count("harbor")
        2
    """
    return ScriptedLLM(_write)


def _write(request: Request) -> str:
    question = request.messages[-1].content
    explanation = next((line for line in question.splitlines() if line.startswith("Explanation:")), "")
    words = sorted(_words(explanation)) or [FILLER[0]]
    pairs = re.search(r"Write (\d+) pair", question)
    rng = derive_rng(0, "rule_writer", explanation)
    lines = []
    for number in range(1, int(pairs[1]) + 1 if pairs else 1):
        twin = rng.choice(FILLER, size=_WRITTEN).tolist()
        text = list(twin)
        text[int(rng.integers(_WRITTEN))] = words[number % len(words)]
        lines += [f"Text {number}: {' '.join(text)}", f"Twin {number}: {' '.join(twin)}"]
    return "\n".join(lines)


def _judge_list(request: Request) -> str:
    lines = request.messages[-1].content.splitlines()
    words = _words(next((line for line in lines if line.startswith("Explanation:")), ""))
    windows = [m[1] for line in lines if (m := re.match(r"Window \d+: (.*)", line))]
    return str([int(_fits(window, words)) for window in windows])


def _judge_one(prompt: str, explanation: str) -> float:
    window = prompt.rpartition("\n\n")[2].partition("\n")[0]
    return -1.0 if _fits(window, _words(explanation)) else -6.0


def _words(explanation: str) -> set[str]:
    """Return the words that an explanation names."""
    named = re.search(r"words: ([\w, ]+)", explanation)
    return set(re.findall(r"'(\w+)'", explanation)) | set(named[1].split(", ") if named else ())


def _fits(window: str, words: set[str]) -> bool:
    marked = re.findall(r"<<(.*?)>>", window)
    return all(words & set(re.findall(r"\w+", piece)) for piece in marked or [window])


def rule_explainer() -> ScriptedLLM:
    """Return an explainer that names the most frequently marked word in the windows of the last turn."""

    def reply(request: Request) -> str:
        marked = re.findall(r"<<\W*(\w+)", request.messages[-1].content)
        return f"EXPLANATION: the word '{Counter(marked).most_common(1)[0][0]}'" if marked else "EXPLANATION:"

    return ScriptedLLM(reply)
