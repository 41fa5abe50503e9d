"""Placeholders for what a plan does not load: a source without model, and a subject that generates placeholder text."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.models import Strength
from saeval.plugin.base import ActivationSource

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from saeval.activations import ActivationWriter

_VOCABULARY = 32


class UnreadSource(ActivationSource):
    """A source whose model is not loaded: all activations on written texts are 0, and steering has no effect."""

    name = "unread"

    def collect(self, writer: ActivationWriter) -> None:
        """Collect nothing."""

    def activations_on(self, text: str, latent: int) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Return the text's words, each with the activation 0."""
        words = tuple(re.findall(r"\s*\S+", text))
        return [(words, np.zeros(len(words), dtype=np.float32))]

    def subject(self) -> Any:
        """Return a subject that generates placeholder text."""
        return _Subject()

    def weights(self) -> Any:
        """Return a placeholder coder whose latents write to the hookpoint that it reads."""
        import torch

        return SimpleNamespace(direction=lambda latent: torch.ones(1), writes=None, transcoder=False)


class _Subject:
    """A placeholder for `Subject`, with the parts that steering steps use."""

    point = "unread"

    @property
    def live(self) -> Any:
        """The placeholder model: a tokenizer of words, and activations of 0."""
        return SimpleNamespace(
            lock=threading.RLock(),
            tokenizer=lambda text, **options: {"input_ids": [0] * len(text.split())},
            capture=self._activations,
        )

    def prompt(self, token_ids: Sequence[int]) -> list[int]:
        """Return the window's tokens."""
        return [*token_ids]

    def text(self, token_ids: Sequence[int]) -> str:
        """Return a number for each token, with the usual length of a token."""
        return "".join(f" {number:03d}" for number in token_ids)

    def steered(self, prompts: Sequence[Sequence[int]], direction: Tensor) -> _Steered:
        """Return placeholder steered prompts."""
        return _Steered(len(prompts))

    def _activations(self, ids: Tensor, points: Sequence[str]) -> dict[str, Tensor]:
        import torch

        return {point: torch.zeros(*ids.shape, 1) for point in points}


class _Steered:
    """A placeholder for `Steered`, in which any strength has the requested divergence.

    Args:
        prompts: Number of prompts.
    """

    def __init__(self, prompts: int):
        self._prompts = prompts

    @property
    def clean(self) -> Tensor:
        """Log-probabilities that are all 0.  [prompts, vocabulary]"""
        return self.next_logprobs(0.0)

    def next_logprobs(self, factor: float) -> Tensor:
        """Return log-probabilities that are all 0.  [prompts, vocabulary]"""
        import torch

        return torch.zeros(self._prompts, _VOCABULARY)

    def divergence(self, factor: float) -> Tensor:
        """Return 0 for each prompt.  [prompts]"""
        return self.next_logprobs(factor)[:, 0]

    def calibrate(self, kl: float, tolerance: float = 0.1) -> Strength:
        """Return a strength of 1."""
        return Strength(1.0, kl)

    def generate(self, factor: float, n: int, noise: np.random.Generator, temperature: float = 1.0) -> list[list[int]]:
        """Return n random tokens for each prompt, so that requests differ."""
        return [[int(number) for number in row] for row in noise.integers(1000, size=(self._prompts, n))]
