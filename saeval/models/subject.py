"""Steers a model at one hookpoint, and finds the tokens that a direction promotes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from saeval._util import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from saeval.models.coders import HookPoint
    from saeval.models.live import LiveModel

_TRIALS = 40  # maximum strengths tried in the search for a divergence
_WEAKEST, _STRONGEST = 1e-5, 1e7  # bounds of that search, as norms of the added vector
_PROBES = 4  # random directions that test how a hookpoint writes into the residual stream
_ALIKE = 0.98  # least cosine between measured effect and the one computed from modules to accept the latter
_STEADY = 0.6  # least mean cosine between the effect at a token and its mean; below, it depends on the text
_TEXT = (
    "The harbour was quiet when the ships came in, and nobody on the long stone wall said a word. In 1851 there were "
    "thirty boats; now there are three, painted blue and white. She asked him twice whether he had seen the letter, "
    "but he only shook his head, folded the map and walked up the hill."
)
_GROWTH = 4.0  # factor between strengths until two of them enclose the target divergence


class Strength(NamedTuple):
    """A steering strength and its measured effect.

    Attributes:
        factor: Factor of the direction.
        kl: Mean divergence KL(clean ‖ steered) of the next-token distribution, in nats.
    """

    factor: float
    kl: float


class Subject:
    """A language model with the hookpoint of a latent's coder.

    Methods take the model's lock and may be called from threads.

    Args:
        live: The model.
        point: The hookpoint.
        lead: Tokens that precede the text in each prompt, as in the contexts of the corpus; default: BOS, if the model
            has one.

    Attributes:
        live: The model.
        point: The hookpoint.
    """

    def __init__(self, live: LiveModel, point: HookPoint, lead: Sequence[int] | None = None):
        self.live = live
        self.point = point
        self._lead = lead

    def at(self, place: str) -> Subject:
        """Return the same model at another hookpoint, with the same prompts."""
        return Subject(self.live, self.live.hookpoint(place), self._lead)

    @cached_property
    def width(self) -> int:
        """Width of the activations at the hookpoint."""
        with self.live.lock:
            return self.live.width(self.point)

    def prompt(self, token_ids: Sequence[int]) -> list[int]:
        """Return a window's tokens as a prompt, preceded by the tokens that precede the text in the corpus."""
        bos = self.live.tokenizer.bos_token_id
        default = [] if bos is None else [bos]
        return [*(default if self._lead is None else self._lead), *map(int, token_ids)]

    def text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, without special tokens."""
        return str(self.live.tokenizer.decode([*map(int, token_ids)], skip_special_tokens=True))

    def steered(self, prompts: Sequence[Sequence[int]], direction: Tensor, *, cached: bool = True) -> Steered:
        """Return prompts for steered generation with a direction; see `Steered`.

        Args:
            prompts: Token ids, including BOS; all of the same length.
            direction: The direction to add.  [width]
            cached: Whether to cache the state that does not depend on the strength; results are the same without.

        Raises:
            InputError: If the prompts differ in length or the direction has the wrong width.
        """
        if direction.shape != (self.width,):
            raise InputError(
                f"a direction of shape {list(direction.shape)} cannot be added at {self.point}, of width {self.width}"
            )
        return Steered(self.live, self.point, prompts, direction, cached=cached)

    def promoted(self, direction: Tensor, tuned_lens: Path | None = None) -> Tensor:
        """Return a direction's effect on each token's logit (logit lens), to first order and up to a common factor.

        The direction is passed through the linear part of the final norm and the unembedding, skipping all blocks in
        between; a tuned lens first adds the output of its translator. A direction at the input of a linear module,
        such as a neuron's, is first passed through that module; a norm or gate between the hookpoint and the stream
        is applied, too. This path is verified against the model's behaviour on a text.

        Args:
            direction: The direction; several at once are possible without a tuned lens.  [..., width]
            tuned_lens: Folder of a tuned lens (`params.pt`).

        Returns:
            Logits.  [..., vocabulary] float32

        Raises:
            InputError: If the hookpoint's effect on the residual stream depends on the text, the model's unembedding
                is not supported, or the tuned lens does not fit.
        """
        import torch

        with self.live.lock, torch.inference_mode():
            residual = self._written(direction.float().to(self.live.device))
            if tuned_lens is not None:
                residual = residual + self._translator(tuned_lens, residual) @ residual
            return self.live.unembed_direction(residual).cpu()

    def _written(self, direction: Tensor) -> Tensor:
        """Map directions at the hookpoint to the residual stream.  [..., width] -> [..., residual width]"""
        if self._as_built:
            return self._by_structure(direction)
        flat = direction.reshape(-1, direction.shape[-1])
        written = self.live.direct_effect(self.point, flat, self._text).mean(dim=1)
        return written.reshape(*direction.shape[:-1], -1)

    def _by_structure(self, direction: Tensor) -> Tensor:
        """Pass a direction through the modules after the hookpoint: a linear module that reads it, and a norm."""
        import torch

        width = self.live.model.config.get_text_config().hidden_size
        module = self.live.module(self.point.path)
        weight = getattr(module, "weight", None)
        if self.point.site == "in" and weight is not None and weight.ndim == 2 and width in weight.shape:
            x = direction.to(weight.dtype)
            direction = (module(x) - module(0 * x)).to(direction.device, torch.float32)
        if direction.shape[-1] != width:
            raise InputError(
                f"a direction of width {direction.shape[-1]} at {self.point} is not in the residual stream (width "
                f"{width}), so a logit lens cannot be applied; choose a hookpoint in the residual stream"
            )
        norm = self.live.norm_after(self.point.path)
        if norm is None:
            return direction
        x = direction.to(next(iter(norm.parameters()), direction).dtype)
        # The norm's gain times a factor; modules of a distributed model return results on their own GPU.
        linear: Tensor = (norm(x) - norm(-x)).to(direction.device, torch.float32) / 2
        scaled: Tensor = (
            linear * direction.norm(dim=-1, keepdim=True) / linear.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        )
        return scaled

    @cached_property
    def _as_built(self) -> bool:
        """Whether `_by_structure` gives the effect on the residual stream that is measured on a text.

        Raises:
            InputError: If the effect of a direction depends on the text, so that a logit lens cannot be applied.
        """
        import torch

        blocks = self.live.blocks()
        if self.point.path in blocks or self.live.block_of(self.point.path) is None:
            return True
        probes = torch.randn(_PROBES, self.live.width(self.point), generator=torch.Generator().manual_seed(0))
        built = self._by_structure(probes.to(self.live.device))
        effects = self.live.direct_effect(self.point, probes, self._text)[:, 1:]  # BOS is atypical
        mean = effects.mean(dim=1)
        if float(_cosines(built, mean).min()) >= _ALIKE:
            return True
        if float(_cosines(effects, mean[:, None]).mean()) < _STEADY:
            raise InputError(
                f"the effect of a direction at {self.point} of model {self.live.name} on the residual stream depends "
                "on the text, so a logit lens cannot be applied; choose a hookpoint whose output is added to the "
                "stream"
            )
        return False

    @cached_property
    def _text(self) -> Tensor:
        """Tokens of a text for measuring the effects of directions."""
        import torch

        tokens = self.live.tokenizer(_TEXT, add_special_tokens=False)["input_ids"][:64]
        return torch.tensor([i for i in self.prompt(tokens) if i < self.live.vocabulary])

    def _translator(self, folder: Path, residual: Tensor) -> Tensor:
        """Return a tuned lens' weights for the output of this hookpoint's block.  [width, width]"""
        import torch

        block = self.live.block_of(self.point.path)
        if block is None:
            raise InputError(f"{self.point} is not in a block, so a tuned lens has no translator for it")
        blocks = len(self.live.blocks())
        # Translator i reads what enters block i: the output of block i-1.
        number = block if self.point.site == "in" and self.point.path == self.live.blocks()[block] else block + 1
        if number >= blocks:
            return torch.zeros(len(residual), len(residual), device=residual.device)
        path = folder / "params.pt"
        try:
            saved = torch.load(path, map_location=residual.device, weights_only=True)
            weights: Tensor = saved[f"{number}.weight"].float()
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"tuned lens {path}: no translator {number} can be read ({type(error).__name__})"
            ) from None
        if weights.shape != (len(residual), len(residual)):
            raise InputError(
                f"tuned lens {path}: translator {number} has shape {list(weights.shape)}, not {len(residual)} squared"
            )
        return weights


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


class Steered:
    """Steered generation: continues prompts while a direction is added from their last token on (paper §3.3.5).

    The direction is added at the prompts' last token and at every generated token; earlier tokens are not changed, so
    that they are computed once.

    Args:
        live: The model.
        point: The hookpoint where the direction is added.
        prompts: Token ids, including BOS; all of the same length.
        direction: The direction.  [width]
        cached: Whether to cache the state that does not depend on the strength.

    Raises:
        InputError: If the prompts differ in length.
    """

    def __init__(
        self,
        live: LiveModel,
        point: HookPoint,
        prompts: Sequence[Sequence[int]],
        direction: Tensor,
        *,
        cached: bool = True,
    ):
        import torch

        if not prompts or len({len(prompt) for prompt in prompts}) != 1 or not len(prompts[0]):
            raise InputError("steering requires prompts that all have the same length")
        self._live, self._point = live, point
        self._prompts = torch.tensor([list(prompt) for prompt in prompts])
        self._direction = direction.detach().float()
        self._cached = cached

    @cached_property
    def _before(self) -> Any:
        """The model's cached state before the prompts' last tokens; None without a cache."""
        import torch

        if not self._cached or self._prompts.shape[1] < 2:
            return None
        with self._live.lock, torch.inference_mode():
            return self._live.remember(self._prompts[:, :-1])

    @cached_property
    def clean(self) -> Tensor:
        """Log-probabilities (nats) of the token after each prompt, without steering.  [prompts, vocabulary] float32"""
        return self.next_logprobs(0.0)

    def next_logprobs(self, factor: float) -> Tensor:
        """Return log-probabilities (nats) of the token after each prompt with the direction added.

        Args:
            factor: Factor of the direction.

        Returns:
            Log-probabilities.  [prompts, vocabulary] float32
        """
        return self._step(self._prompts, deepcopy(self._before), factor)[0]

    def divergence(self, factor: float) -> Tensor:
        """Return KL(clean ‖ steered) of the next-token distribution, in nats.  [prompts]"""
        return (self.clean.exp() * (self.clean - self.next_logprobs(factor))).sum(dim=-1)

    def calibrate(self, kl: float, tolerance: float = 0.1) -> Strength:
        """Find the strength at which the prompts' mean divergence has a given value (paper §3.3.5, equation 2).

        The divergence need not increase monotonically with the strength. Between two strengths that enclose the target,
        the search interpolates logarithms, with bisection as a safeguard.

        Args:
            kl: Target of the mean KL(clean ‖ steered), in nats.
            tolerance: Accepted relative error.

        Returns:
            The strength that came closest, with its measured divergence.

        Raises:
            InputError: If the direction is zero or `kl` is not positive.
        """
        length = float(self._direction.norm())
        if length == 0 or not kl > 0:
            raise InputError(f"no strength of a direction of length {length:g} gives a divergence of {kl:g} nats")
        tried: list[Strength] = []

        def attempt(factor: float) -> Strength:
            tried.append(Strength(factor, float(self.divergence(factor).mean())))
            return tried[-1]

        low = high = attempt(1.0 / length)
        while low.kl > kl and low.factor * length > _WEAKEST:
            high, low = low, attempt(low.factor / _GROWTH)
        while high.kl < kl and high.factor * length < _STRONGEST:
            low, high = high, attempt(high.factor * _GROWTH)
        for trial in range(_TRIALS):
            best = min(tried, key=lambda s: abs(s.kl - kl))
            if abs(best.kl - kl) <= tolerance * kl or not low.kl < kl < high.kl:
                break
            share = 0.5
            if trial % 3 != 2 and low.kl > 0:
                share = min(0.9, max(0.1, math.log(kl / low.kl) / math.log(high.kl / low.kl)))
            middle = attempt(low.factor * (high.factor / low.factor) ** share)
            low, high = (middle, high) if middle.kl < kl else (low, middle)
        return min(tried, key=lambda s: abs(s.kl - kl))

    def generate(self, factor: float, n: int, noise: np.random.Generator, temperature: float = 1.0) -> list[list[int]]:
        """Continue each prompt with the direction added at every step.

        Equal generators give equal draws: clean and steered text then differ by the steering only.

        Args:
            factor: Factor of the direction.
            n: Maximum number of tokens to generate; a text ends earlier at an end token.
            noise: Random generator for sampling.
            temperature: Sampling temperature; 0 for the likeliest token.

        Returns:
            The generated tokens of each prompt, without end tokens.
        """
        import torch

        tokens, memory = self._prompts, deepcopy(self._before)
        ended = torch.zeros(len(tokens), dtype=torch.bool)
        ends = torch.tensor(sorted(self._live.ends()))
        made = [list[int]() for _ in range(len(tokens))]
        for _ in range(n):
            logprobs, memory = self._step(tokens, memory, factor)
            if temperature > 0:
                # The argmax of log-probabilities plus Gumbel noise is a sample from the distribution.
                logprobs = logprobs / temperature + torch.from_numpy(noise.gumbel(size=tuple(logprobs.shape)))
            chosen = logprobs.argmax(dim=-1)
            ended |= torch.isin(chosen, ends)
            if bool(ended.all()):
                break
            for row, token, over in zip(made, chosen.tolist(), ended.tolist(), strict=True):
                if not over:
                    row.append(token)
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        return made

    def _step(self, tokens: Tensor, memory: Any, factor: float) -> tuple[Tensor, Any]:
        """Return log-probabilities of the token after each row, and the cached state after all tokens.

        Args:
            tokens: Prompts and generated tokens.  [prompts, tokens]
            memory: Cached state before the last tokens; None to compute everything again.
            factor: Factor of the direction, which is added from the prompts' last token on.
        """
        import torch

        first = self._prompts.shape[1] - 1
        new, before = (tokens, 0) if memory is None else (tokens[:, -1:], tokens.shape[1] - 1)
        live, direction = self._live, self._direction
        with live.lock, torch.inference_mode():
            steering = (
                live.steer(self._point, direction, factor, first=max(0, first - before)) if factor else nullcontext()
            )
            with steering:
                logits, memory = live.go_on(new, memory)
            return logits.float().log_softmax(dim=-1).cpu(), memory
