"""Finds the modules, blocks and hookpoints of a transformers model."""

from __future__ import annotations

import difflib
import threading
from functools import cached_property, partial
from typing import Any, NamedTuple

from saeval._util import InputError
from saeval.models.coders import HookPoint
from saeval.models.made_for import block_number, plain_place
from saeval.models.transformer_lens_names import is_hook, transformer_lens_place


class BlockParts(NamedTuple):
    """Paths of a block's parts; None for missing ones.

    Attributes:
        attention: Attention.
        mlp: The MLP.
        attention_norm: The norm between attention and the stream.
        mlp_norm: The norm between MLP and the stream.
    """

    attention: str | None
    mlp: str | None
    attention_norm: str | None
    mlp_norm: str | None


class ModuleTree:
    """A loaded model and the paths of its modules.

    Attributes:
        name: The name it was loaded with.
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        has_head: Whether its files contain an unembedding; without one, it has activations only.
        device: Its torch device.
        lock: Lock to hold while using the model.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, has_head: bool = True):
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.has_head = has_head
        self.device = str(model.device)
        self.lock = threading.Lock()
        self._prefix = f"{model.base_model_prefix}."

    @property
    def vocabulary(self) -> int:
        """Number of rows in the embedding; token ids are smaller."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def _modules(self) -> dict[str, Any]:
        """Modules by path: relative to the base model, or to the whole model for modules outside of it."""
        modules = {
            path: m for path, m in self.model.named_modules() if path and not f"{path}.".startswith(self._prefix)
        }
        return {**{path: m for path, m in self.model.base_model.named_modules() if path}, **modules}

    def modules(self) -> list[str]:
        """Return the paths of all modules, relative to the base model for those inside of it (`layers.9.mlp`)."""
        return list(self._modules)

    def module(self, path: str) -> Any:
        """Return the module at a path, as `modules()` lists it."""
        return self._modules[path]

    def blocks(self) -> list[str]:
        """Return the paths of the model's blocks, in order.

        Raises:
            InputError: If they cannot be identified.
        """
        import torch

        count = self.model.config.get_text_config().num_hidden_layers
        text = self.model.get_decoder()  # the text part of a multimodal model
        inside = {id(module) for module in text.modules()}
        found = [
            path
            for path, module in self._modules.items()
            if isinstance(module, torch.nn.ModuleList) and len(module) == count and id(module) in inside
        ]
        if len(found) > 1:  # Gemma 3n has other lists that may have the same length
            found = [path for path in found if path.rpartition(".")[2] in ("layers", "h", "blocks")]
        if len(found) != 1:
            raise InputError(f"model {self.name}: its blocks cannot be identified; give a module path")
        return [f"{found[0]}.{i}" for i in range(count)]

    def block_of(self, path: str) -> int | None:
        """Return the number of the block that contains a module; None if there is none."""
        return next((i for i, block in enumerate(self.blocks()) if f"{path}.".startswith(f"{block}.")), None)

    def hookpoint(self, name: str) -> HookPoint:
        """Return the hookpoint with a name.

        Args:
            name: A module path, with or without the base model's prefix, optionally followed by `.input` or `.output`
                (`layers.9`, `model.layers.9.mlp.input`); or a TransformerLens name (`blocks.9.hook_resid_post`).

        Raises:
            InputError: If the model has no such hookpoint.
        """
        asked, name = name, plain_place(name)
        if (path := self._path(name)) is not None:
            return HookPoint(path)
        stem, _, site = name.rpartition(".")
        if site in ("input", "output") and (path := self._path(stem)) is not None:
            return HookPoint(path, "in" if site == "input" else "out")
        if is_hook(name):
            return transformer_lens_place(self, name)
        near = self._with_own_block(name.removeprefix(self._prefix))
        close = difflib.get_close_matches(near, self.modules(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"its modules have names such as {self.modules()[-1]!r}"
        raise InputError(f"model {self.name} has no module {asked!r}; {hint}")

    def _with_own_block(self, name: str) -> str:
        """Return a module path with the block's path in this model (`layers.9.mlp` as `h.9.mlp`), if it names one."""
        number = block_number(name)
        try:
            blocks = self.blocks()
        except InputError:
            return name
        if number is None or number >= len(blocks):
            return name
        return f"{blocks[number]}{name.partition(f'.{number}')[2]}"

    def _path(self, name: str) -> str | None:
        relative = name
        while relative.startswith(self._prefix):
            relative = relative.removeprefix(self._prefix)
        candidates = (name, relative, f"language_model.{relative}")
        return next((path for path in candidates if path in self._modules), None)

    def first_of(self, block: str, *names: str) -> str | None:
        """Return the path of the first of these modules that exists in a block; None if none does."""
        return next((f"{block}.{n}" for n in names if f"{block}.{n}" in self._modules), None)

    def block_parts(self, block: str) -> BlockParts:
        """Return the parts of a block."""
        first = partial(self.first_of, block)
        # Some models, such as Gemma 2 and 3, normalise the outputs of attention and MLP before adding them.
        attention_norm, mlp_norm = first("post_self_attn_layernorm"), first("post_mlp_layernorm")
        if normalised := first("post_feedforward_layernorm"):
            attention_norm, mlp_norm = first("post_attention_layernorm"), normalised
        attention = first("self_attn", "attn", "attention", "self_attention")
        return BlockParts(attention, first("mlp", "feed_forward", "ffn", "mlp_block"), attention_norm, mlp_norm)

    def norm_after(self, path: str) -> Any:
        """Return the norm between a module's output and the residual stream; None if there is none."""
        number = self.block_of(path)
        if number is None:
            return None
        parts = self.block_parts(self.blocks()[number])
        for part, norm in ((parts.attention, parts.attention_norm), (parts.mlp, parts.mlp_norm)):
            if part is not None and norm is not None and f"{path}.".startswith(f"{part}."):
                return self._modules[norm]
        return None
