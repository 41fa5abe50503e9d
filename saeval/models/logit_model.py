"""Computes logits from hidden states and from directions of the residual stream."""

from __future__ import annotations

import inspect
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from saeval._util import InputError
from saeval.models.hooked_model import HookedModel
from saeval.models.module_hooks import hooked, keep

if TYPE_CHECKING:
    from torch import Tensor

_FINAL_NORMS = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "ln_out", "embedding_norm", "out_norm",
    "final_norm",
)  # fmt: skip


class LogitModel(HookedModel):
    """A model whose unembedding and final norm can be applied separately."""

    @property
    def head(self) -> Any:
        """The unembedding module.

        Raises:
            InputError: If the model's files contain none.
        """
        if not self.has_head:
            raise InputError(
                f"model {self.name}: its files contain no unembedding (lm_head), so it has activations but no logits; "
                "use the complete causal language model"
            )
        return self.model.get_output_embeddings()

    @cached_property
    def logit_rules(self) -> tuple[float | None, float]:
        """Soft cap (or None) and scale of the logits, from the model's configuration.

        Raises:
            InputError: If computing logits with them does not reproduce the model's logits.
        """
        import torch

        self.head  # noqa: B018 - raises an error for models without one
        config = self.model.config.get_text_config()

        def first(*names: str) -> float | None:
            values = (getattr(config, name, None) for name in names)
            return next((float(v) for v in values if isinstance(v, int | float) and v), None)

        cap = first("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        scale = first("logit_scale", "lm_head_multiplier") or 1 / (first("logits_scaling") or 1)
        tokens = torch.arange(3, 9, device=self.device)[None]
        with torch.inference_mode():
            expected = self.model(tokens, use_cache=False).logits[0, -1].float()
            hidden = self.model.base_model(tokens, use_cache=False).last_hidden_state[0, -1]
            made = self._logits(hidden, cap, scale)
        if not self._agree(made, expected):
            raise InputError(
                f"model {self.name} computes its logits in a way that saeval does not support; choose another model"
            )
        return cap, scale

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return logits from final hidden states (after the final norm).  [positions, width] -> [positions, vocabulary]

        The result is on the device of the unembedding, which may differ if the model is distributed over GPUs.

        Raises:
            InputError: If the model computes its logits in an unsupported way.
        """
        return self._logits(hidden, *self.logit_rules)

    def _logits(self, hidden: Tensor, cap: float | None, scale: float) -> Tensor:
        head = self.head
        logits: Tensor = head(hidden.to(head.weight)).float()  # Mamba's residual stream is always float32
        logits = logits * scale if scale != 1 else logits
        return (logits / cap).tanh() * cap if cap is not None else logits

    def unembed_direction(self, direction: Tensor) -> Tensor:
        """Return the effect of a residual-stream direction on the logits, up to a common positive factor.

        Args:
            direction: The direction.  [width]

        Returns:
            Logits, before any soft cap.  [vocabulary] float32

        Raises:
            InputError: If `unembed(norm(residual))` does not give this model's logits.
        """
        norm, weight = self._final_norm, self.head.weight
        x = direction.to(next(iter(norm.parameters()), weight))
        # Half the difference of norm(x) and norm(-x) is the linear part of the norm: it removes the bias.
        linear = (norm(x) - norm(-x)) / 2
        logits: Tensor = (linear.to(weight) @ weight.T).float()
        return logits

    @cached_property
    def _final_norm(self) -> Any:
        """The norm between the last block and the unembedding, found by name and checked against the model."""
        import torch

        self.logit_rules  # noqa: B018 - raises an error if the logits cannot be reproduced
        text = self.model.get_decoder()
        norm = next((m for name in _FINAL_NORMS if (m := getattr(text, name, None)) is not None), None)
        seen: dict[str, Any] = {}
        if norm is not None:
            block = self._modules[self.blocks()[-1]]
            places = [(block, "out", "block"), (norm, "in", "before"), (norm, "out", "after")]
            with hooked((m, site, partial(keep, seen, label)) for m, site, label in places), torch.inference_mode():
                tokens = torch.arange(3, 9, device=self.device)[None]
                seen["state"] = self.model.base_model(tokens, use_cache=False).last_hidden_state
        same = all(
            torch.is_tensor(seen.get(a)) and torch.is_tensor(seen.get(b)) and torch.equal(seen[a], seen[b])
            for a, b in (("block", "before"), ("after", "state"))
        )
        if norm is None or not same:
            raise InputError(
                f"model {self.name} has no known final norm between its last block and its unembedding, so a logit "
                "lens cannot be applied; choose another model"
            )
        return norm

    def next_logprobs(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return log-probabilities (nats) of the token after each context.

        Args:
            tokens: Token ids, padded on the right.  [contexts, tokens] int64
            lengths: Number of tokens per context without padding; None if there is no padding.  [contexts]

        Returns:
            Log-probabilities.  [contexts, vocabulary] float32
        """
        import torch

        self.head  # noqa: B018 - raises an error for models without one
        last = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths.cpu()
        kept, column = torch.unique(last - 1, return_inverse=True)
        options: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = kept.tolist()  # indexes states on whichever GPU holds the last layer
        else:
            column = last - 1
        with torch.inference_mode():
            logits = self.model(input_ids=tokens.to(self.device), use_cache=False, **options).logits
            logprobs: Tensor = logits[torch.arange(len(tokens)), column].float().log_softmax(dim=-1)
        return logprobs
