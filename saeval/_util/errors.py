"""Defines the errors that saeval raises; each message says what happened, where, and what to do.

SaevalError
├── SpecError             mistakes in a task spec, reported together, each with its file and line
├── PluginError           a plugin that is unknown, broken, too old or defined twice
├── InputError            a model, SAE, corpus or directory that is missing or does not fit
├── StoreError            an activation store that is unfinished, corrupt or of another format
├── ParseError            a model's reply without a readable answer
│   └── CutOff            the reply ended at the token limit
├── LLMError              a call that failed; `.retryable` says whether a retry can help
│   └── Refused           the model answered, but declined
├── BudgetExceeded        the spending limit is reached; the run can be resumed
└── InternalError         a plugin, a library or saeval itself failed unexpectedly; the log contains the traceback
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from saeval._util.secrets import without_secrets

if TYPE_CHECKING:
    from saeval.records import Usage


class SaevalError(Exception):
    """Base of all errors that saeval raises intentionally. Its message can be shown to users.

    Args:
        message: What happened, where, and what to do; anything that looks like a credential is removed.
    """

    def __init__(self, message: str = ""):
        super().__init__(without_secrets(message))


class SpecError(SaevalError):
    """One or more mistakes in a task spec.

    Args:
        problems: One sentence per mistake, each beginning with its place (`file:line: key: …`).
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(map(without_secrets, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[str, ...]]]:
        """Pickle the problems, since the message alone would be read as a sequence of characters."""
        return type(self), (self.problems,)


class PluginError(SaevalError):
    """A plugin that is unknown, broken, too old, or defined twice."""


class InputError(SaevalError):
    """Something that a spec names is missing or does not fit: a model, an SAE, a corpus, a directory."""


class StoreError(SaevalError):
    """An activation store that is unfinished, corrupt, or of another format."""


class ParseError(SaevalError):
    """A reply without a readable answer. It counts as a status, never as an answer."""


class CutOff(ParseError):
    """A reply that ended at the token limit, so that it contains no complete answer."""


class LLMError(SaevalError):
    """A call to a language model that failed.

    Args:
        message: What happened, in one sentence, without keys and prompts.
        retryable: Whether the same call may succeed later (rate limit, server error, lost connection).
        retry_after: Seconds that the server asked to wait, if it did.
        usage: Usage of the failed call, since refusals and empty answers are billed.
        lasting: Whether all other calls will fail, too: a wrong key or model name, no credit.
        busy: Whether the server is busy: rate limit, overload, or loading a model.
        cut: Whether the model reached its token limit before answering.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        usage: Usage | None = None,
        lasting: bool = False,
        busy: bool = False,
        cut: bool = False,
    ):
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.usage = usage
        self.lasting = lasting
        self.busy = busy
        self.cut = cut


class Refused(LLMError):
    """The model replied, but declined the request."""


class BudgetExceeded(SaevalError):
    """The run's spending limit is reached. Completed work is saved; running again with a higher limit resumes."""


class InternalError(SaevalError):
    """An unexpected failure in a plugin, a library or saeval; the log that it names has the traceback."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` with the closest known word; empty if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def first_line(error: object, otherwise: str = "no reason given") -> str:
    """Return the first line of an error's message; `otherwise` if it is blank."""
    return next(iter(str(error).strip().splitlines()), otherwise)
