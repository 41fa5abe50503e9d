"""A simulated judge that knows the exact meaning of explanations of the source `known`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field, JsonValue

from saeval.plugin import (
    LLM,
    FillReply,
    FillRequest,
    InputError,
    LLMError,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
    Usage,
    content_hash,
    derive_rng,
)
from saeval_plugins._known import FILLER, N_LATENTS, Meaning, explanations, meanings, words_of

_LIKELY, _UNLIKELY = -1.0, -6.0  # nats
_WORDS = 8  # per generated text
_FAULTS = ("twice_too_broad", "ten_times_too_broad", "half_missing", "wrong_token", "neighbour", "hedged")


class Oracle(LLM):
    """Judges explanations by their known rules, so that scorers can be tested without a judge's errors.

    `oracle/judge` answers as a chat model does, for `detection` and `fuzzing`; `oracle/base` scores texts and fills
    gaps, for `surprisal` and `simulation`; `oracle/writer` writes texts, for `generation`; `oracle/explainer`
    identifies the latent by a marked word, for `default`, `refine` and `probing`. An explanation that does not come
    from the explainers of the source `known` is an error.

    With `errors`, `oracle/explainer` returns that share of its explanations with a known error. The wrong explanation
    agrees with everything the oracle has read: the share `attention` of the windows to explain, and all windows and
    texts of later tests. An error therefore remains until a test contradicts it.
    """

    name = "oracle"
    synthetic = True
    reproducible = False
    in_process = True

    sensitivity: float = Field(default=1.0, ge=0, le=1)
    """Share of the matching windows that `oracle/judge` accepts."""
    specificity: float = Field(default=1.0, ge=0, le=1)
    """Share of the non-matching windows that `oracle/judge` rejects."""
    errors: float = Field(default=0.0, ge=0, le=1)
    """Share of `oracle/explainer`'s explanations that are wrong, if a wrong one agrees with all it has read."""
    attention: float = Field(default=1.0, ge=0, le=1)
    """Share of the windows to explain that `oracle/explainer` reads."""
    steady: bool = True
    """Whether it repeats the same errors when a request is repeated."""

    def check(self) -> None:
        """Check that the model is one of the oracles."""
        if self.model not in ("judge", "base", "writer", "explainer"):
            raise InputError(
                f"oracle/{self.model}: there are oracle/judge, oracle/base, oracle/writer and oracle/explainer"
            )

    def fingerprint(self) -> JsonValue:
        """Return the options and the meanings of all explanations."""
        return [super().fingerprint(), *(text for texts in map(explanations, range(2)) for text, _ in texts.values())]

    @property
    def can_score(self) -> bool:
        """Whether this is `oracle/base`, which scores texts."""
        return self.model == "base"

    async def complete(self, request: Request) -> Reply:
        """Answer as a judge, writer or explainer.

        The judge answers 1 for a window if the explanation matches at least half of its marked pieces, or, without
        marks, its text.
        """
        lines = request.messages[-1].content.splitlines()
        if self.model == "explainer" and not lines[-1].startswith(("Write ", "Answer with ")):
            examples = "\n".join(message.content for message in request.messages[:-1])
            return Reply(f"EXPLANATION: {self._explained(lines, examples)}", Usage(usd=0.0))
        text, meaning = _explanation(lines)
        if self.model == "explainer" and (asked := re.findall(r"^Write (\d+) ACTIVE", lines[-1])):
            # The prompt's length is part of the seed, because a repeated text would be rejected.
            pairs = _pairs(text, meaning, int(asked[0]), f"{len(lines)}").splitlines()
            return Reply("\n".join(map(_as_probe, pairs)), Usage(usd=0.0))
        if self.model == "writer":
            return Reply(_pairs(text, meaning, int(re.findall(r"Write (\d+)", lines[-1])[0])), Usage(usd=0.0))
        windows = [found[1] for line in lines if (found := re.match(r"Window \d+: (.*)", line))]
        fits = [_fits(meaning, window) for window in windows]
        key = text if self.steady else f"{text} {request.repeat}"
        answers = [fit is not self._errs(key, window, fit) for window, fit in zip(windows, fits, strict=True)]
        return Reply(str([int(answer) for answer in answers]), Usage(usd=0.0))

    def _explained(self, lines: list[str], examples: str) -> str:
        """Return the true explanation of the latent with the marked words, or a wrong one that agrees with all read.

        Args:
            lines: The question.
            examples: The previous turns; wrong explanations in them are not repeated.

        Raises:
            LLMError: If no marked word belongs to a known latent.
        """
        found = explanations(_of_marked(lines))
        read = [
            (re.sub("<<|>>", "", window), "<<" in window)
            for window, tested in _windows(lines)
            if tested or _share(window) < self.attention
        ]
        wrong = [found[name] for name in _FAULTS if found[name][0] not in examples]
        agreeing = [text for text, meaning in wrong if all(meaning.fits(window) is active for window, active in read)]
        share = _share(*lines) / self.errors if self.errors else 1.0
        return agreeing[int(share * len(agreeing))] if agreeing and share < 1 else found["known"][0]

    def _errs(self, explanation: str, window: str, fits: bool) -> bool:
        """Return whether the answer about a window is an error, decided by a hash."""
        right = self.sensitivity if fits else self.specificity
        return right < 1 and _share(explanation, window) >= right

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Return a high log-probability for windows that match the explanation; an unknown text matches all."""
        found = []
        for prompt in request.prompts:
            text = prompt.rpartition("What they have in common: ")[2].splitlines()[0]
            meaning = meanings().get(text)
            fits = [meaning is None or meaning.fits(window) for window in request.continuations]
            found.append(tuple((_LIKELY if fit else _UNLIKELY,) for fit in fits))
        return LogprobReply(tuple(found), Usage(usd=0.0))

    async def fill(self, request: FillRequest) -> FillReply:
        """Return a high log-probability for the highest level on matching tokens, and for the lowest elsewhere."""
        _, meaning = _explanation(request.prefix.splitlines())
        others = (_UNLIKELY,) * (len(request.choices) - 1)
        weights = {False: (_LIKELY, *others), True: (*others, _LIKELY)}
        found = [tuple(weights[meaning.fits(part)] for part in text) for text in request.texts]
        return FillReply(tuple(found), Usage(usd=0.0))


def _explanation(lines: list[str]) -> tuple[str, Meaning]:
    """Return the last explanation in a prompt, and its meaning.

    Raises:
        LLMError: If it does not belong to a known latent.
    """
    lead = "Explanation: "
    text = next((line.removeprefix(lead) for line in reversed(lines) if line.startswith(lead)), "")
    if text not in meanings():
        raise LLMError(f"the oracle does not know the explanation {text!r}; it judges known latents")
    return text, meanings()[text]


def _of_marked(lines: list[str]) -> int:
    """Return the latent that fires on the first marked word.

    Raises:
        LLMError: If no marked word belongs to a known latent.
    """
    for word in re.findall(r"<<\W*(\w+)", "\n".join(lines)):
        for latent in range(N_LATENTS):
            if word in words_of(latent):
                return latent
    raise LLMError("the oracle knows none of the marked words; it explains known latents")


def _windows(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield the windows and texts of a prompt, and whether they belong to a test."""
    tested = False
    for line in lines:
        tested = tested or line.startswith(("Active, but ", "Silent, but ", "Expected "))
        if found := re.match(r"Window \d+: (.*)", line):
            yield found[1], tested


def _share(*key: str) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the key."""
    return int(content_hash(*key)[:8], 16) / 16.0**8


def _as_probe(line: str) -> str:
    """Return a line of a pair in the format that `probing` expects."""
    kind, _, text = line.partition(": ")
    return f"{'ACTIVE' if kind.startswith('Text') else 'SILENT'}: {text}"


def _pairs(explanation: str, meaning: Meaning, k: int, *key: str) -> str:
    """Write k texts with one of the explanation's words each, and a twin of each with that word replaced."""
    rng = derive_rng(0, "oracle/writer", explanation, *key)
    words = rng.permutation(sorted(meaning.words)).tolist()
    lines = []
    for number in range(1, k + 1):
        plain = rng.choice(FILLER, size=_WORDS).tolist()
        holding = list(plain)
        holding[int(rng.integers(_WORDS))] = words[number % len(words)]
        text, twin = (plain, holding) if meaning.negated else (holding, plain)
        lines += [f"Text {number}: {' '.join(text)}", f"Twin {number}: {' '.join(twin)}"]
    return "\n".join(lines)


def _fits(meaning: Meaning, window: str) -> bool:
    """Return whether at least half of the marked pieces match, or, without marks, the whole window."""
    pieces = re.findall("<<(.*?)>>", window) or [window]
    return 2 * sum(map(meaning.fits, pieces)) >= len(pieces)
