"""A judge that knows exactly what explanations of the latents of the source `known` mean."""

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
_WORDS = 8  # of a text that it writes
_FAULTS = ("twice_too_broad", "ten_times_too_broad", "half_missing", "wrong_token", "neighbour", "hedged")


class Oracle(LLM):
    """Judges by the rules alone, so that errors of a judge are no part of what a scorer sees.

    `oracle/judge` answers as a chat model does, for `detection` and `fuzzing`; `oracle/base` scores texts and weighs
    choices, for `surprisal` and `simulation`; `oracle/writer` writes texts, for `generation`; `oracle/explainer` knows
    the latent by a marked word, for `default`, `refine` and `probing`. Explanations that do not come from the
    explainers of the source `known` are an error.

    With `errors`, `oracle/explainer` gives that share of its explanations wrongly, in one of the known ways that agree
    with all it has read: of the windows that it explains, the share `attention`, and all that a test shows it, whether
    windows or texts. So a fault stays where nothing it has read speaks against it.
    """

    name = "oracle"
    synthetic = True
    reproducible = False
    in_process = True

    sensitivity: float = Field(default=1.0, ge=0, le=1)
    """Share of the fitting windows that `oracle/judge` says fit; the others are errors."""
    specificity: float = Field(default=1.0, ge=0, le=1)
    """Share of the other windows that it says do not fit."""
    errors: float = Field(default=0.0, ge=0, le=1)
    """Share of explanations by `oracle/explainer` that are wrong, where what it has read agrees with a wrong one."""
    attention: float = Field(default=1.0, ge=0, le=1)
    """Share of the windows to explain that `oracle/explainer` reads."""
    steady: bool = True
    """Whether it makes the same errors when asked again."""

    def check(self) -> None:
        """See whether there is such an oracle."""
        if self.model not in ("judge", "base", "writer", "explainer"):
            raise InputError(
                f"oracle/{self.model}: there are oracle/judge, oracle/base, oracle/writer and oracle/explainer"
            )

    def fingerprint(self) -> JsonValue:
        """Return the options and what explanations mean."""
        return [super().fingerprint(), *(text for texts in map(explanations, range(2)) for text, _ in texts.values())]

    @property
    def can_score(self) -> bool:
        """Whether it is the oracle that scores texts."""
        return self.model == "base"

    async def complete(self, request: Request) -> Reply:
        """Answer 1 for each window that fits the explanation: at least half of its marked pieces, or its text."""
        lines = request.messages[-1].content.splitlines()
        if self.model == "explainer" and not lines[-1].startswith(("Write ", "Answer with ")):
            examples = "\n".join(message.content for message in request.messages[:-1])
            return Reply(f"EXPLANATION: {self._explained(lines, examples)}", Usage(usd=0.0))
        text, meaning = _explanation(lines)
        if self.model == "explainer" and (asked := re.findall(r"^Write (\d+) ACTIVE", lines[-1])):
            # Each asking another text: what was written before is not taken again.
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
        """Return the true explanation of the latent with marked words, or a wrong one that agrees with what is read.

        Args:
            lines: The question.
            examples: What precedes it; explanations in it are not given again.

        Raises:
            LLMError: If no marked word is one of a known latent.
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
        """Tell whether the answer about a window is an error; a hash decides."""
        right = self.sensitivity if fits else self.specificity
        return right < 1 and _share(explanation, window) >= right

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Find a window likely after an explanation that it fits; a description of anything fits all."""
        found = []
        for prompt in request.prompts:
            text = prompt.rpartition("What they have in common: ")[2].splitlines()[0]
            meaning = meanings().get(text)
            fits = [meaning is None or meaning.fits(window) for window in request.continuations]
            found.append(tuple((_LIKELY if fit else _UNLIKELY,) for fit in fits))
        return LogprobReply(tuple(found), Usage(usd=0.0))

    async def fill(self, request: FillRequest) -> FillReply:
        """Find the highest level likely on a token that fits, and the lowest elsewhere."""
        _, meaning = _explanation(request.prefix.splitlines())
        others = (_UNLIKELY,) * (len(request.choices) - 1)
        weights = {False: (_LIKELY, *others), True: (*others, _LIKELY)}
        found = [tuple(weights[meaning.fits(part)] for part in text) for text in request.texts]
        return FillReply(tuple(found), Usage(usd=0.0))


def _explanation(lines: list[str]) -> tuple[str, Meaning]:
    """Return the last explanation in a prompt, and its meaning.

    Raises:
        LLMError: If it is not one of a known latent.
    """
    lead = "Explanation: "
    text = next((line.removeprefix(lead) for line in reversed(lines) if line.startswith(lead)), "")
    if text not in meanings():
        raise LLMError(f"the oracle does not know the explanation {text!r}; it judges known latents")
    return text, meanings()[text]


def _of_marked(lines: list[str]) -> int:
    """Return the latent that fires on the first marked word.

    Raises:
        LLMError: If no marked word is one of a known latent.
    """
    for word in re.findall(r"<<\W*(\w+)", "\n".join(lines)):
        for latent in range(N_LATENTS):
            if word in words_of(latent):
                return latent
    raise LLMError("the oracle knows none of the marked words; it explains known latents")


def _windows(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield the windows and texts of a prompt, and whether a test shows them."""
    tested = False
    for line in lines:
        tested = tested or line.startswith(("Active, but ", "Silent, but ", "Expected "))
        if found := re.match(r"Window \d+: (.*)", line):
            yield found[1], tested


def _share(*key: str) -> float:
    """Return a number from 0 to 1 that depends on the key alone."""
    return int(content_hash(*key)[:8], 16) / 16.0**8


def _as_probe(line: str) -> str:
    """Return a line of a pair as `probing` asks for it."""
    kind, _, text = line.partition(": ")
    return f"{'ACTIVE' if kind.startswith('Text') else 'SILENT'}: {text}"


def _pairs(explanation: str, meaning: Meaning, k: int, *key: str) -> str:
    """Write k texts with one of the explanation's words each, and the same with another word in its place."""
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
    """Tell whether at least half of the pieces that count fit."""
    pieces = re.findall("<<(.*?)>>", window) or [window]
    return 2 * sum(map(meaning.fits, pieces)) >= len(pieces)
