"""Judges turn log-probabilities into answers by Bayes' rule; failures say how much was answered."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import pytest
from saeval_plugins.scorers.detection import Detection

from saeval import LLMError
from saeval.plugin import Explanation, LogprobReply, ParseError
from saeval.plugin.outcomes import failed, unanswered, valued
from saeval.testing.toys import ScriptedLLM, context, make_examples


class Scores:
    """A model whose log-probabilities are given: of the windows, and of ordinary passages."""

    can_score = True

    def __init__(self, windows, ordinary):
        self.replies = {len(windows): windows, len(ordinary): ordinary}

    async def logprobs(self, request):
        return LogprobReply(logprobs=[[[value]] for value in self.replies[len(request.prompts)]])


def test_an_answer_by_probability_compares_with_the_mean_probability_over_ordinary_passages():
    examples = make_examples()
    detection = Detection()
    n, ordinary = len(detection.questions(examples, context(ScriptedLLM()))), len(detection.references())
    passages = [-10.0 + 0.1 * i for i in range(ordinary)]
    prior = math.log(sum(map(math.exp, passages)) / ordinary)
    values = [prior + 0.5 * (i - n / 2) - 0.1 for i in range(n)]
    asked = context(ScriptedLLM())
    asked = SimpleNamespace(rng=asked.rng, latent=asked.latent, llm=Scores(values, passages))
    explanation = Explanation(text="a word")
    questions = detection.questions(examples, asked)
    outcomes = asyncio.run(detection.judge(explanation, questions, asked))
    assert [o.predicted for o in outcomes] == [value > prior for value in values]
    expected = [math.exp(value) / (math.exp(value) + math.exp(prior)) for value in values]
    assert [o.probability for o in outcomes] == pytest.approx(expected)


def test_judges_ask_for_no_alternatives_unless_told():
    assert Detection().top_logprobs == 0


def test_a_failed_score_says_how_many_windows_were_answered_and_the_commonest_reason():
    windows = make_examples().activating[:4]
    cut, dead = ParseError("no list"), LLMError("server is down")
    outcomes = [
        valued(windows[0], 0.5),
        *(unanswered(w, e) for w, e in zip(windows[1:], (cut, dead, cut), strict=True)),
    ]
    assert failed(outcomes, "nothing").reason == "1 of 4 windows answered: no list"
    assert failed(outcomes[:1], "nothing").reason == "1 of 1 windows answered: nothing"
    assert [o.status for o in outcomes] == ["ok", "unparsed", "failed", "unparsed"]
