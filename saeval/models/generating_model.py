"""Generates text token by token, reusing the model's cached state (such as keys and values)."""

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
    """A model's cached state after some tokens.

    Attributes:
        name: Argument of the forward pass that takes the state.
        state: The state.
        tokens: Number of tokens read.
    """

    name: str
    state: Any
    tokens: int


class GeneratingModel(LogitModel):
    """A model that generates text."""

    def ends(self) -> set[int]:
        """Return the tokens that end a text."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        return {int(token) for token in (*listed, self.tokenizer.eos_token_id) if token is not None}

    def remember(self, tokens: Tensor) -> Any:
        """Return the model's cached state after some tokens, to continue from it or from deep copies of it.

        The state depends on the model: keys and values, or the states of a recurrent network.

        Args:
            tokens: Token ids, no padding.  [contexts, tokens]

        Returns:
            The state; None if the model has none that works, so that all tokens have to be read again.
        """
        return None if self._memory_name is None else self._remember(tokens, self._memory_name)

    def go_on(self, tokens: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """Run the model and return the logits after the last token, and the cached state after all tokens.

        Args:
            tokens: Token ids, no padding.  [contexts, tokens]
            memory: Cached state after the previous tokens, which is modified; None to use no cache.

        Returns:
            Logits [contexts, vocabulary], and the new state.
        """
        import torch

        self.head  # noqa: B018 - raises an error for models without one
        known = inspect.signature(self.model.forward).parameters
        options: dict[str, Any] = {"use_cache": memory is not None}
        if "logits_to_keep" in known:
            options["logits_to_keep"] = 1
        if memory is not None:
            options[memory.name] = memory.state
            if "position_ids" in known:  # Bamba would otherwise count from 0 again
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
        """Argument name of the model's cached state; None if continuing from a copy changes the results.

        This is tested on random tokens, because it does not work for all models: RWKV's state supports single contexts
        only, and RecurrentGemma keeps its state in its modules.
        """
        import torch

        tokens = torch.arange(3, 3 + 3 * 7).reshape(3, 7)
        with torch.inference_mode():
            expected, _ = self.go_on(tokens)
            for name in _MEMORIES:
                try:
                    memory = self._remember(tokens[:, :5], name)
                    self.go_on(tokens[:, :1], deepcopy(memory))  # another continuation, which must not change the state
                    _, memory = self.go_on(tokens[:, 5:6], memory)
                    made, _ = self.go_on(tokens[:, 6:], memory)
                except Exception:  # noqa: BLE001, S112 - the model does not use this argument
                    continue
                if self._agree(made, expected):
                    return name
        return None
