"""Generation measures whether the latent fires on texts written from the explanation (FADE, arXiv 2502.16994)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from saeval.plugin import (
    AUROC,
    Context,
    CorpusFiring,
    Examples,
    Explanation,
    LatentId,
    LLMError,
    Metric,
    Need,
    Outcome,
    ParseError,
    Refused,
    Reply,
    Request,
    Score,
    Scorer,
    WrittenText,
    ask_twice,
    auroc,
    one_line,
    shortened,
    whole_answer,
)
from saeval_plugins.prompts import load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPT = load("generation.md")
CLARITY = Metric("clarity", chance=0.5)
RESPONSIVENESS = Metric("responsiveness")
AT_MEDIAN = Metric("responsiveness_median")
AT_TOP = Metric("responsiveness_top_decile")
PURITY = Metric("purity")
MINIMAL = Metric("minimal_twins", higher_is_better=None, wanted=(0.8, 1.0))

_LINE = re.compile(r"[\s>*_`#-]*(text|twin)\s*(\d{1,4})\s*[*_`]*\s*[:.)][*_`]*\s*(.*)", re.IGNORECASE)
_QUOTES = (('"', '"'), ("“", "”"), ("`", "`"))
_LONGEST = 600  # maximum characters per text; longer replies did not follow the instructions
_WORDS_PER_TOKEN = 0.6  # leaves room for words of several tokens
_EDITED = 3  # maximum words that a minimal edit changes


class Pair(NamedTuple):
    """A text that should activate the latent, and its minimally edited twin, which should not."""

    text: str
    twin: str


class Generation(Scorer):
    """Measures the latent's activations on texts that an LLM writes from the explanation (FADE, arXiv 2502.16994).

    A language model writes `k` texts that should activate the latent and, for each, a minimal twin: a text that differs
    by one edit and should not activate it. The source's model reads them; a text's value is the latent's maximum
    activation, excluding BOS. `auroc` measures how well values separate texts from twins, and `clarity` texts from
    random windows of the corpus. `responsiveness` is the share of texts in which the latent fires at all; `_median` and
    `_top_decile` are the shares that reach the median or the strongest tenth of its windows in the corpus. `purity` is
    the average precision of texts among twins, if texts were as rare as activating windows are in the corpus.

    Needs no judge and does not use the sampled windows. A text is read without preceding context, up to `tokens`
    tokens. Texts and activations are in the judgements.
    """

    name = "generation"
    llm_role = "writer"
    metrics = (AUROC, CLARITY, RESPONSIVENESS, AT_MEDIAN, AT_TOP, PURITY, MINIMAL)
    prompts = (PROMPT,)

    k: int = Field(default=10, ge=2, le=100)
    """Number of texts to request, each with a twin."""
    tokens: int | None = Field(default=None, ge=4)
    """Maximum tokens to read per text; default: the length of the sampled windows."""

    def needs(self) -> frozenset[Need]:
        """Return the needs: a source that reads any text, and the latent's firing in the corpus."""
        return frozenset({"text", "in_corpus"})

    def cautions(self, values: Mapping[str, float], latents: Sequence[LatentId]) -> list[str]:
        """Warn if the writer's twins are not minimal."""
        share = values.get(MINIMAL.name)
        if share is None or MINIMAL.meets(share):
            return []
        return [
            f"only {share:.0%} of the twins differ from their text in one place; the others are easier to "
            f"distinguish, so use another model for the role `writer`"
        ]

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Request texts, read the latent's activations on them, and compute the metrics."""
        limit = self.tokens or _window(examples)
        words = str(max(4, round(limit * _WORDS_PER_TOKEN)))
        messages = PROMPT.messages(explanation=one_line(explanation.text), k=str(self.k), words=words)
        shown = {line for turn in messages if turn.role == "assistant" for line in _lines(turn.content).values()}
        try:
            pairs = await ask_twice(context.llm, Request(messages), lambda reply: parse_pairs(reply, self.k, shown))
        except Refused as error:
            return Score.failed(f"refused: {error}")
        except LLMError as error:
            return Score.failed(f"call failed: {error}")
        except ParseError as error:
            return Score.failed(str(error))
        outcomes = await asyncio.to_thread(_read, pairs, limit, context)
        values = _values(outcomes, examples.in_corpus)
        values[MINIMAL.name] = sum(map(is_minimal, pairs)) / len(pairs)
        return Score(values=values, outcomes=tuple(outcomes))


def parse_pairs(reply: Reply | str, k: int, shown: Collection[str] = ()) -> list[Pair]:
    """Return the first k pairs of distinct texts in a reply, ignoring case and spaces.

    Args:
        reply: The reply; plain text counts as complete.
        k: Number of requested pairs.
        shown: Texts of the prompt's own examples, which weak models repeat.

    Raises:
        ParseError: If the reply is incomplete, or has fewer such pairs.
    """
    answer = whole_answer(reply)
    lines = _lines(answer)
    numbers = sorted({number for _, number in lines})
    seen = {_plain(text) for text in shown}
    pairs: list[Pair] = []
    for number in numbers:
        pair = Pair(lines.get(("text", number), ""), lines.get(("twin", number), ""))
        own = {_plain(text) for text in pair}
        if len(own) == 2 and "" not in own and not own & seen and max(map(len, pair)) <= _LONGEST:
            pairs.append(pair)
            seen |= own
    if len(pairs) < k:
        raise ParseError(f"{len(pairs)} of {k} pairs of different texts in the reply {shortened(answer)!r}")
    return pairs[:k]


def _lines(answer: str) -> dict[tuple[str, int], str]:
    """Return texts and twins by number; of several lines with one number, the last."""
    found = (match for line in answer.splitlines() if (match := _LINE.fullmatch(line)))
    return {(match[1].lower(), int(match[2])): _bare(match[3]) for match in found}


def _bare(text: str) -> str:
    """Return a text without enclosing quotes or emphasis, with `\n` as line breaks."""
    text = text.strip().removesuffix("**").strip()
    for left, right in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text.startswith(left) and text.endswith(right) and left not in inner:
            text = inner
            break
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def is_minimal(pair: Pair) -> bool:
    """Return whether a twin differs from its text in one place by at most three words."""
    text, twin = pair.text.split(), pair.twin.split()
    while text and twin and text[0] == twin[0]:
        del text[0], twin[0]
    while text and twin and text[-1] == twin[-1]:
        del text[-1], twin[-1]
    return max(len(text), len(twin)) <= _EDITED


def _window(examples: Examples) -> int:
    """Return the number of tokens per sampled window."""
    windows = (*examples.activating, *examples.non_activating)
    return max((len(window.tokens) for window in windows), default=32)


def _read(pairs: Sequence[Pair], limit: int, context: Context) -> list[Outcome]:
    """Return an outcome for every text and twin, with the latent's activations."""
    outcomes = []
    for number, pair in enumerate(pairs, 1):
        for kind, text in zip(("text", "twin"), pair, strict=True):
            parts = context.read(text)
            tokens = [token for words, _ in parts for token in words][:limit]
            values = [float(f"{value:.5g}") for _, strengths in parts for value in strengths.tolist()][:limit]
            strongest = max(values, default=0.0)
            outcomes.append(
                Outcome(
                    example=f"{kind} {number}",
                    active=kind == "text",
                    predicted=strongest > 0,
                    probability=strongest,
                    written=WrittenText(tokens=tuple(tokens), activations=tuple(values)),
                )
            )
    return outcomes


def _values(outcomes: Sequence[Outcome], corpus: CorpusFiring | None) -> dict[str, float]:
    """Return the metrics, including those relative to the corpus if its firing is known."""
    import numpy as np

    texts, twins = (
        np.array([outcome.probability for outcome in outcomes if outcome.active is side]) for side in (True, False)
    )
    ranked = auroc([o.active for o in outcomes], [o.probability for o in outcomes])  # type: ignore[misc]
    values = {AUROC.name: ranked, RESPONSIVENESS.name: float((texts > 0).mean())}
    if corpus is None or not len(corpus.maxima):
        return values
    median, top = np.quantile(corpus.maxima, (0.5, 0.9))
    return values | {
        CLARITY.name: above_corpus(texts, corpus),
        AT_MEDIAN.name: float((texts >= median).mean()),
        AT_TOP.name: float((texts >= top).mean()),
        PURITY.name: average_precision(texts, twins, corpus.rate),
    }


def above_corpus(values: NDArray[np.float64], corpus: CorpusFiring) -> float:
    """Return the probability that a value exceeds a random window's strongest activation; ties count half."""
    import numpy as np

    below, upto = (np.searchsorted(corpus.maxima, values, side=side) for side in ("left", "right"))
    firing = (below + upto) / (2 * len(corpus.maxima))
    silent = np.where(values > 0, 1.0, 0.5)
    return float(np.mean(corpus.rate * firing + (1 - corpus.rate) * silent))


def average_precision(positives: NDArray[np.float64], negatives: NDArray[np.float64], rate: float) -> float:
    """Return the average precision of values for positives among negatives, with a prevalence of `rate`."""
    found, area = 0.0, 0.0
    for level in sorted({*positives.tolist()}, reverse=True):
        recall, alarms = float((positives >= level).mean()), float((negatives >= level).mean())
        area += (recall - found) * rate * recall / (rate * recall + (1 - rate) * alarms)
        found = recall
    return area
