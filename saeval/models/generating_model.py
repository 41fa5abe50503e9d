"""Continues texts token by token, reusing the model's cached state of earlier tokens."""

from __future__ import annotations

import inspect
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from saeval.models.logit_model import LogitModel

if TYPE_CHECKING:
    from torch import Tensor

_MEMORIES = ("past_key_values", "cache_params", "state")


class _Memory(NamedTuple):
    """What a model remembers of tokens.

    Attributes:
        name: Argument of its forward pass that takes it.
        state: What that is given.
        tokens: Tokens that it has read.
    """

    name: str
    state: Any
    tokens: int


class GeneratingModel(LogitModel):
    """A model that continues texts."""

    def ends(self) -> set[int]:
        """Return the tokens that end a text."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        return {int(token) for token in (*listed, self.tokenizer.eos_token_id) if token is not None}

    def remember(self, tokens: Tensor) -> Any:
        """Return the model's memory of tokens, to go on from, or from deep copies of it.

        What counts as memory is the model's: keys and values, or the states of a recurrent network.

        Args:
            tokens: Token ids, no padding.  [contexts, tokens]

        Returns:
            The memory; None if the model has none that can be relied on, so that it must read everything again.
        """
        return None if self._memory_name is None else self._remember(tokens, self._memory_name)

    def go_on(self, tokens: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """Run the model and return the logits after the last token, and its memory of all tokens.

        Args:
            tokens: Token ids, no padding.  [contexts, tokens]
            memory: Memory of the tokens before, which is written to; without it nothing is remembered.

        Returns:
            Logits [contexts, vocabulary], and the memory.
        """
        import torch

        self.head  # noqa: B018 - refuses models without one
        known = inspect.signature(self.model.forward).parameters
        options: dict[str, Any] = {"use_cache": memory is not None}
        if "logits_to_keep" in known:
            options["logits_to_keep"] = 1
        if memory is not None:
            options[memory.name] = memory.state
            if "position_ids" in known:  # which Bamba would count from 0 again
                places = torch.arange(memory.tokens, memory.tokens + tokens.shape[1], device=self.device)
                options["position_ids"] = places.expand(len(tokens), -1)
        output = self.model(tokens.to(self.device), **options)
        if memory is not None:
            memory = _Memory(memory.name, getattr(output, memory.name), memory.tokens + tokens.shape[1])
        return output.logits[:, -1], memory

    def _remember(self, tokens: Tensor, name: str) -> _Memory:
        output = self.model.base_model(tokens.to(self.device), use_cache=True)
        return _Memory(name, getattr(output, name), tokens.shape[1])

    @cached_property
    def _memory_name(self) -> str | None:
        """What the model calls its memory, where going on from a copy of it gives what reading everything again gives.

        That is tried out, for it is not so everywhere: RWKV's memory holds for single contexts only, and
        RecurrentGemma keeps its own in its modules.
        """
        import torch

        tokens = torch.arange(3, 3 + 3 * 7).reshape(3, 7)
        with torch.inference_mode():
            expected, _ = self.go_on(tokens)
            for name in _MEMORIES:
                try:
                    memory = self._remember(tokens[:, :5], name)
                    self.go_on(tokens[:, :1], deepcopy(memory))  # goes another way, which must not matter
                    _, memory = self.go_on(tokens[:, 5:6], memory)
                    made, _ = self.go_on(tokens[:, 6:], memory)
                except Exception:  # noqa: BLE001, S112 - of many kinds; each means that this is not how it remembers
                    continue
                if self._agree(made, expected):
                    return name
        return None
