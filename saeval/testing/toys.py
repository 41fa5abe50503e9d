"""Toy inputs for plugins: a language model, examples, embeddings, a context."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval._util import LLMError, derive_rng
from saeval.plugin.base import Context, Embed
from saeval.records import (
    Example,
    Examples,
    FillReply,
    FillRequest,
    LanguageModel,
    LatentId,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

LATENT = LatentId("toy", 0)

FILLER = tuple(
    """
    the a of and to in it was with for on that at by from his her they were he she as had but not be or which an one
    all there some out up then when so over old new little great long still under again upon before after two every
    through down away made came went saw said took gave found left turned looked walked waited once only near very
    while three soon
    """.split()  # noqa: SIM905
)
PLANTED = tuple(
    """
    harbor lantern violin meadow copper thunder ladder pepper castle needle rabbit window blanket candle river
    hammer orchard pilgrim saddle tunnel whistle anchor basket carpet desert engine feather garden helmet island
    jacket kettle lemon mirror napkin oyster pillow quarry ribbon shovel temple umbrella valley wagon acorn barrel
    button camel dagger falcon goblet hornet ivory jungle kitten ledger magnet nutmeg otter paddle raven shelter
    trumpet velvet
    """.split()  # noqa: SIM905
)


class ScriptedLLM(LanguageModel):
    """A language model whose answers are fixed or computed from the request.

    Args:
        reply: The answer, or a function of the request that returns it (as text or `Reply`) or raises an error.
        score: Returns the log-probability (nats) of a continuation after a prompt, or of a choice after the text up to
            its gap; without it, the model cannot score.

    Attributes:
        requests: Requests to `complete`, in order.
        scored: Requests to `logprobs`, in order.
        filled: Requests to `fill`, in order.

    Example:
        >>> import asyncio
        >>> llm = ScriptedLLM(lambda request: request.messages[-1].content.upper())
        >>> asyncio.run(llm.complete(Request.of("yes or no?"))).text
        'YES OR NO?'
        >>> len(llm.requests)
        1
    """

    def __init__(
        self, reply: str | Callable[[Request], str | Reply] = "", score: Callable[[str, str], float] | None = None
    ):
        self._reply = reply
        self._score = score
        self.requests: list[Request] = []
        self.scored: list[LogprobRequest] = []
        self.filled: list[FillRequest] = []

    @property
    def can_score(self) -> bool:
        """Whether `score` is set."""
        return self._score is not None

    async def complete(self, request: Request) -> Reply:
        """Return the scripted answer; an empty one raises an `LLMError`, as with any model."""
        self.requests.append(request)
        answer = self._reply(request) if callable(self._reply) else self._reply
        reply = Reply(answer) if isinstance(answer, str) else answer
        if not reply.text:
            raise LLMError("the model's answer is empty")
        return reply

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Return the scripted log-probabilities, one token per continuation."""
        if self._score is None:
            return await super().logprobs(request)
        self.scored.append(request)
        score = self._score
        return LogprobReply(
            tuple(tuple((score(request.prefix + p, c),) for c in request.continuations) for p in request.prompts)
        )

    async def fill(self, request: FillRequest) -> FillReply:
        """Return the scripted log-probabilities of the choices, after the text before each gap."""
        if self._score is None:
            return await super().fill(request)
        self.filled.append(request)
        score, found = self._score, []
        for text in request.texts:
            before = [request.prefix + request.filler.join(text[: gap + 1]) for gap in range(len(text))]
            found.append(tuple(tuple(score(prompt, choice) for choice in request.choices) for prompt in before))
        return FillReply(tuple(found))


def make_example(
    text: str,
    fires: Mapping[str, float] | None = None,
    *,
    document: int = 0,
    context: int = 0,
    start: int = 1,
    decile: int | None = None,
) -> Example:
    """Create a window from a text; tokens are words or punctuation marks with the preceding space.

    Args:
        text: The text.
        fires: Activations by token text without space; 0 for all other tokens.
        document: Number of its document.
        context: Number of its context.
        start: Index of its first token in the context.
        decile: Rank decile.

    Example:
        >>> window = make_example("a lantern by the sea", {"lantern": 2.0})
        >>> window.tokens, window.active
        (('a', ' lantern', ' by', ' the', ' sea'), True)
    """
    tokens = tuple(re.findall(r"\s*(?:\w+|[^\w\s])|\s+\Z", text))
    activations = np.array([(fires or {}).get(token.strip(), 0.0) for token in tokens], dtype=np.float32)
    return Example(
        tokens=tokens,
        token_ids=np.array([zlib.crc32(token.encode()) % 50_000 for token in tokens], dtype=np.int32),
        activations=activations,
        document=document,
        context=context,
        start=start,
        active=bool(activations.any()),
        decile=decile,
    )


def make_examples(
    word: str = PLANTED[0],
    *,
    activating: int = 20,
    non_activating: int = 20,
    window: int = 24,
    seed: int = 0,
    first: int = 0,
    latent: LatentId = LATENT,
    decoy: str | None = PLANTED[1],
) -> Examples:
    """Create windows of simple words for a latent that fires on one word, which occurs one to three times per window.

    Args:
        word: The word.
        activating: Number of windows with the word.
        non_activating: Number of windows without the word.
        window: Tokens per window.
        seed: Seed of the windows.
        first: Number of the first context; each window is a separate context and document.
        latent: The latent.
        decoy: Word of the decoy latent; None for no decoy.

    Example:
        >>> examples = make_examples("lantern", activating=3, non_activating=2)
        >>> [" lantern" in e.tokens for e in (*examples.activating, *examples.non_activating)]
        [True, True, True, False, False]
    """
    rng = derive_rng(seed, "make_examples", word)
    built: list[Example] = []
    for number in range(activating + non_activating):
        active = number < activating
        words = list(rng.choice(FILLER, size=window))
        for at in rng.choice(window, size=rng.integers(1, 4), replace=False):
            words[at] = word if active else rng.choice([w for w in PLANTED if w != word])
        strength = float(rng.uniform(1, 10))
        built.append(
            make_example(
                " " + " ".join(words),
                {word: strength} if active else {},
                document=first + number,
                context=first + number,
            )
        )
    shown = sorted(built[:activating], key=lambda example: -example.max_activation)
    ranked = tuple(replace(example, decile=i * 10 // activating) for i, example in enumerate(shown))
    return Examples(latent, ranked, tuple(built[activating:]), 10.0, _decoy(decoy, word, non_activating, window, seed))


def _decoy(decoy: str | None, word: str, windows: int, window: int, seed: int) -> Examples | None:
    """Create the windows of the decoy's word; use another word if it is the latent's own."""
    if decoy is None or not windows:
        return None
    other = decoy if decoy != word else next(w for w in PLANTED if w != word)
    latent = LatentId(LATENT.hookpoint, LATENT.index + 1)
    made = make_examples(
        other, activating=windows, non_activating=0, window=window, seed=seed, first=10_000, latent=latent, decoy=None
    )
    return replace(made, activating=tuple(replace(example, decile=None) for example in made.activating))


def word_embeddings(model: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit vectors that are similar for texts that share words; an `Embed` without a model.

    Args:
        model: Ignored.
        texts: The texts.
    """
    vectors = np.zeros((len(texts), 512), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text.casefold()):
            row[zlib.crc32(word.encode()) % 512] += 1
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return vectors


def context(
    llm: LanguageModel | None = None,
    *,
    seed: int = 0,
    embed: Embed = word_embeddings,
    latent: LatentId = LATENT,
    **lent: Any,
) -> Context:
    """Create a context for one call of an explainer or scorer.

    Args:
        llm: The language model; without one, requests raise an `LLMError`.
        seed: Seed of the context's random generator.
        embed: Sentence embeddings.
        latent: The latent.
        **lent: Other fields of `Context`.
    """
    return Context(latent, derive_rng(seed, "testing"), llm or ScriptedLLM(), embed, **lent)
