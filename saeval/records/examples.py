"""Defines latents, windows of text, and the disjoint sets to explain from and to score on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OPEN, CLOSE = "<<", ">>"

Flaw = Literal["leak", "unverified"]
"""Flaws that a sampler declares if it reproduces another tool: text shared between explaining and scoring (`leak`), or
non-activating windows that are not verified (`unverified`)."""


@dataclass(frozen=True, order=True)
class LatentId:
    """One latent of a sparse coder: the hookpoint and the latent's index.

    Example:
        >>> str(LatentId("layers.9", 17))
        'layers.9/17'
    """

    hookpoint: str
    index: int

    def __str__(self) -> str:
        return f"{self.hookpoint}/{self.index}"


@dataclass(eq=False, slots=True)
class Example:
    """A window of text and how strongly one latent fired on each of its tokens.

    Several steps read the same object, so do not change it: `dataclasses.replace` makes a changed copy. The arrays of
    windows from a store are read-only. It is not frozen, because sampling frozen dataclasses takes 1.3 times as long.

    Attributes:
        tokens: The tokens as text; joined, they are the window.
        token_ids: The same tokens as the subject model's tokenizer numbers them.  [window] int32
        activations: One value per token, 0 where the latent does not fire.  [window] float32
        document: Number of the document in the corpus that the window was cut from.
        context: Number of the context (one row of the model's input) it was cut from.
        start: Index in that context of the window's first token.
        active: Whether the latent fired anywhere in the window. Verified, not assumed.
        decile: Rank decile of the maximum activation among the latent's activating windows, 0 the
            strongest; None for non-activating windows.
        weight: For non-activating windows: how many randomly drawn windows it represents; None if unknown.
    """

    tokens: Sequence[str]
    token_ids: NDArray[np.int32]
    activations: NDArray[np.float32]
    document: int
    context: int
    start: int
    active: bool
    decile: int | None = None
    weight: float | None = None

    @property
    def id(self) -> str:
        """The window's address in its corpus, `context:start`."""
        return f"{self.context}:{self.start}"

    @property
    def text(self) -> str:
        """The window as plain text."""
        return "".join(self.tokens)

    @property
    def max_activation(self) -> float:
        """The strongest activation in the window."""
        return float(self.activations.max())

    def firing(self, threshold: float = 0.3) -> list[bool]:
        """Return for each token whether its activation is at least `threshold` times the window's maximum."""
        fires: list[bool] = _strong(self.activations, threshold).tolist()
        return fires

    def marked(self, marks: Sequence[bool] | None = None) -> str:
        """Return the text with runs of marked tokens wrapped in `<<` and `>>`.

        Args:
            marks: One flag per token; default: `firing()`.

        Example:
            >>> from saeval.testing import make_example
            >>> make_example("the old harbor wall", {"harbor": 4.0, "wall": 1.0}).marked()
            'the old<< harbor>> wall'
        """
        flags = self.firing() if marks is None else list(marks)
        return with_marks(self.tokens, flags)

    def shown_at(self) -> list[int]:
        """Return for each token the index of the token that shows its text; see `shown_at`."""
        return shown_at(self.tokens)

    def over_characters(self, flags: Sequence[bool]) -> Sequence[bool]:
        """Return flags of tokens, in which all tokens of a character have the flag if one of them has."""
        return over_characters(self.tokens, flags)


def _strong(strength: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Return for each token whether its activation is at least `threshold` times its window's maximum.

    Args:
        strength: Activations of one window, or of several.  [..., window]
        threshold: Share of the maximum.
    """
    level = threshold * strength.max(axis=-1, keepdims=True).astype(float)
    strong: NDArray[np.bool_] = (strength > 0) & (strength >= level.astype(strength.dtype))
    return strong


def shown_at(tokens: Sequence[str]) -> list[int]:
    """Return for each token the index of the token that shows its text.

    That is its own index or, for a token that only continues a character (an empty string), that of the token that
    begins the character.

    Example:
        >>> shown_at(["a", " 🐋", "", "", "b"])
        [0, 1, 1, 1, 4]
    """
    if "" not in tokens:
        return list(range(len(tokens)))
    places: list[int] = []
    for i, token in enumerate(tokens):
        places.append(i if token or not places else places[-1])
    return places


def over_characters(tokens: Sequence[str], flags: Sequence[bool]) -> Sequence[bool]:
    """Return flags of tokens, in which all tokens of a character have the flag if one of them has; see `shown_at`."""
    if "" not in tokens:
        return flags
    places = shown_at(tokens)
    flagged = set(compress(places, flags))
    return [at in flagged for at in places]


def with_marks(tokens: Sequence[str], marks: Sequence[bool]) -> str:
    """Return tokens as text, with runs of marked ones wrapped in `<<` and `>>`.

    A character of several tokens is marked if one of them is.
    """
    if len(marks) != len(tokens):
        raise ValueError(f"{len(marks)} marks for {len(tokens)} tokens")
    flags = over_characters(tokens, marks)
    shown = list(tokens)
    last = len(shown) - 1
    for i in compress(range(len(shown)), flags):
        if i == 0 or not flags[i - 1]:
            shown[i] = OPEN + shown[i]
        if i == last or not flags[i + 1]:
            shown[i] += CLOSE
    return "".join(shown)


@dataclass(frozen=True, eq=False)
class CorpusFiring:
    """How often, and how strongly, a latent fires in the windows of its whole corpus.

    Attributes:
        rate: Share of the corpus's windows in which it fires.
        maxima: Maximum activation of each window in which it fires, ascending; at most 1,000, at evenly spaced ranks.
            [maxima] float32
    """

    rate: float
    maxima: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examples:
    """The data about a latent that one step (an explainer or scorer) gets.

    Attributes:
        latent: The latent.
        activating: Windows in which it fires, in the order the sampler chose.
        non_activating: Windows in which it verifiably does not fire.
        max_activation: The latent's maximum over the whole corpus; strengths 0–10 are relative to it.
        decoy: Another latent, with windows in which it fires and this one does not, for scorers that mark wrong tokens.
            Set for scorers whose `needs()` contain "decoy", if the store has such a latent.
        in_corpus: How often and how strongly it fires in all windows of the corpus. Set for scorers whose `needs()`
            contain "in_corpus".
        cofiring: For each activating window, the other latents that fire on the token where this one is strongest.
            Set for explainers whose `needs()` contain "cofiring".
    """

    latent: LatentId
    activating: tuple[Example, ...]
    non_activating: tuple[Example, ...]
    max_activation: float
    decoy: Examples | None = None
    in_corpus: CorpusFiring | None = None
    cofiring: tuple[frozenset[int], ...] = ()

    def firing(self, threshold: float = 0.3) -> list[list[bool]]:
        """Return the flags of `Example.firing` for each activating window; windows of one length take one call."""
        import numpy as np

        strengths = [window.activations for window in self.activating]
        if len({(strength.shape, strength.dtype) for strength in strengths}) != 1:
            return [window.firing(threshold) for window in self.activating]
        fires: list[list[bool]] = _strong(np.array(strengths), threshold).tolist()
        return fires

    def strengths(self, example: Example) -> list[int]:
        """Return one strength from 0 to 10 per token: ceil(10 · activation / maximum), 0 if not firing (paper §3.2)."""
        import numpy as np

        scaled = np.ceil(10 * np.clip(example.activations / self.max_activation, 0, 1))
        return [int(v) for v in scaled]


@dataclass(frozen=True, eq=False)
class LatentRecord:
    """A latent with two disjoint sets of windows: to explain it from, and to score the explanation on.

    Attributes:
        latent: The latent.
        firings: Number of tokens in the corpus on which it fires.
        windows: Number of activating windows in the corpus.
        density: Share of tokens on which it fires.
        explain: Data for explainers.
        score: Data for scorers. Shares no document (and so no window) with `explain`.
        flaws: Known flaws of another tool's sampling that is reproduced to compare with its numbers. Each flaw turns
            off one check and adds a warning to every result. With "leak", `score` may share text with `explain`. With
            "unverified", windows with `active` False may contain activations above 0.

    Raises:
        ValueError: If a window is in both sets, or the latent fires in a non-activating window, and no flaw allows it.
    """

    latent: LatentId
    firings: int
    windows: int
    density: float
    explain: Examples
    score: Examples
    flaws: frozenset[Flaw] = frozenset()

    def __post_init__(self) -> None:
        sides = (self.explain, self.score)
        shared = _shared(*([*side.activating, *side.non_activating] for side in sides))
        if shared and "leak" not in self.flaws:
            ids = [f"{context}:{start}" for context, start in sorted(shared)]
            raise ValueError(f"latent {self.latent}: windows {ids[:3]} are in both explain and score")
        for examples in sides:
            wrong = [e for e in examples.activating if not e.active]
            wrong += [e for e in examples.non_activating if e.active]
            if "unverified" not in self.flaws:
                wrong += _firing(examples.non_activating)
            if wrong:
                raise ValueError(f"latent {self.latent}: windows {[e.id for e in wrong[:3]]} are on the wrong side")


def _shared(explain: list[Example], score: list[Example]) -> set[tuple[int, int]]:
    """Return the windows that are in both, as context and start."""
    contexts = {e.context for e in explain} & {e.context for e in score}
    if not contexts:  # the usual case, since no document is in both sets
        return set()
    first, second = ({(e.context, e.start) for e in side if e.context in contexts} for side in (explain, score))
    return first & second


def _firing(examples: Sequence[Example]) -> list[Example]:
    """Return the examples in which the latent fires; checks all at once first, since such windows are rare."""
    import numpy as np

    if not examples or not np.concatenate([e.activations for e in examples]).any():
        return []
    return [e for e in examples if e.activations.any()]
