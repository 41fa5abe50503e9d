"""Replaces language models in a plan: counts requests, and answers like the examples in the prompts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saeval.llm import PromptReply, answer_json, join_replies, prompt_replies, split_request
from saeval.records import FillReply, FillRequest, LanguageModel, LogprobReply, LogprobRequest, Reply, Request, Usage

A = TypeVar("A", Reply, LogprobReply, FillReply)
S = TypeVar("S", LogprobReply, FillReply)

CHARACTERS = 4.0
"""Assumed characters per token."""
EXPLANATION = "words that name a place where many people meet"
"""Placeholder explanation of every latent."""
_TURN = 4  # additional tokens per turn of a conversation
_LOGPROB = -3.1415926535897931  # has the usual number of digits
_USAGE = Usage(1000, 10, 0, 0.00012345, "provider")


@dataclass
class Counter(LanguageModel):
    """A language model that counts requests and answers like the examples in the prompts.

    Attributes:
        scores: Whether it scores continuations.
        longest: Maximum tokens of an answer.
        singly: Whether each prompt of a scoring request is a call of its own.
        calls: Number of different requests.
        taken: Number of prompt tokens.
        fresh: Number of prompt tokens that are not in the prefix cache of a model in process.
        given: Number of generated tokens.
        kept: Bytes of the answers in the cache.
        asked: Prompts and replies since the caller last cleared the list, in the form that results keep.
        seen: The requests.
    """

    scores: bool
    longest: int
    singly: bool = False
    calls: int = 0
    taken: float = 0.0
    fresh: float = 0.0
    given: float = 0.0
    kept: int = 0
    asked: list[PromptReply] = field(default_factory=list)
    seen: set[Any] = field(default_factory=set)

    @property
    def can_score(self) -> bool:
        return self.scores

    def _count(self, request: Any, reply: A, characters: int, fresh: int, turns: int = 0, answer: str = "") -> A:
        if request not in self.seen:  # equal requests are asked once
            self.seen.add(request)
            self.calls += 1
            self.taken += characters / CHARACTERS + turns * _TURN
            self.fresh += fresh / CHARACTERS
            self.given += min(_written(answer), self.longest)
            self.kept += len(answer_json(reply))
        return reply

    async def complete(self, request: Request) -> Reply:
        answer = _answer(request)
        lengths = [len(message.content) for message in request.messages]
        own = (
            lengths[-2:] if request.messages[-1].role == "assistant" else lengths[-1:]
        )  # the last turn may be the start of the answer
        reply = Reply(answer, _USAGE)
        self.asked += prompt_replies(request, reply)
        return self._count(request, reply, sum(lengths), sum(own), len(lengths), answer)

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        return self._count_parts(request, self._scored)

    async def fill(self, request: FillRequest) -> FillReply:
        return self._count_parts(request, self._filled)

    def _count_parts(self, request: Any, count: Callable[[Any], S]) -> S:
        """Count a scoring request, by its parts if the server answers each prompt separately."""
        parts = split_request(request) if self.singly else []
        reply = join_replies(request, [count(part) for part in parts]) if parts else count(request)
        self.asked += prompt_replies(request, reply)
        return reply

    def _scored(self, request: LogprobRequest) -> LogprobReply:
        prompts, continuations = request.prompts, request.continuations
        own = sum(map(len, prompts)) * len(continuations) + len(prompts) * sum(map(len, continuations))
        scored = tuple(tuple((_LOGPROB,) * round(max(1, len(c) / CHARACTERS)) for c in continuations) for _ in prompts)
        characters = len(request.prefix) * len(prompts) * len(continuations) + own
        return self._count(request, LogprobReply(scored, _USAGE), characters, own)

    def _filled(self, request: FillRequest) -> FillReply:
        parts = [part for text in request.texts for part in text]
        filled = sum(map(len, parts)) + len(parts) * len(request.filler)
        weighed = tuple(tuple((_LOGPROB,) * len(request.choices) for _ in text) for text in request.texts)
        characters = len(request.prefix) * len(request.texts) + filled
        return self._count(request, FillReply(weighed, _USAGE), characters, filled)


def _answer(request: Request) -> str:
    """Return the answer of the last worked example; lists get one item per window of the question."""
    *before, last = (m for m in request.messages if m.role != "system")
    shown = [m.content for m in before if m.role == "assistant"]
    answer = shown[-1] if shown else f"EXPLANATION: {EXPLANATION}"
    windows = re.findall(r"^Window \d+:", last.content, re.MULTILINE)
    if pairs := re.search(r"^Write (\d+) pair", last.content, re.MULTILINE):
        return _pairs(answer, int(pairs[1]))
    if probes := re.search(r"^Write (\d+) ACTIVE", last.content, re.MULTILINE):
        return _probes(answer, int(probes[1]), len(last.content))
    if answer.startswith("[") and windows:
        return str([0] * len(windows))
    reasoning, marker, _ = answer.rpartition("EXPLANATION:")
    return f"{reasoning}{marker} {EXPLANATION}" if marker else answer


def _pairs(shown: str, k: int) -> str:
    """Return a numbered list of k pairs, each as long as the first pair in the worked example."""
    first = [line.partition(": ") for line in shown.splitlines()[:2]]
    return "\n".join(f"{head.split()[0]} {i}: {text} {i}" for i in range(1, k + 1) for head, _, text in first)


def _probes(shown: str, k: int, round_: int) -> str:
    """Return k texts of each kind, each as long as the first one in the worked example, and different in each round."""
    first = {line.partition(":")[0]: line for line in reversed(shown.splitlines())}
    return "\n".join(f"{line} {round_}.{i}" for line in first.values() for i in range(k))


def _written(answer: str) -> float:
    """Estimate the tokens of an answer: digits, punctuation and spaces before digits count as one token each."""
    letters = sum(character.isalpha() for character in answer)
    return letters / CHARACTERS + len(re.findall(r"\d|[^\w\s]|\s(?=\d)", answer))
