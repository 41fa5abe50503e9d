"""Maps TransformerLens's hook names to modules of transformers models."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Literal

from saeval._util import InputError
from saeval.models.coders import HookPoint, down_projection

if TYPE_CHECKING:
    from saeval.models.module_tree import ModuleTree

_BEFORE_MLP = (
    "pre_feedforward_layernorm", "ln_2", "ln2", "norm_2", "pre_ff_layernorm", "feedforward_layernorm", "ffn_norm",
    "norm_ffn", "channel_pre_norm",
)  # fmt: skip
_NUMBERED = ("ln_2", "ln2", "norm_2")
"""Names of norms that do not say whether they come before the MLP."""
_ADD_INSIDE = {"bloom": ("hook_attn_out", "hook_mlp_out"), "mpt": ("hook_mlp_out",)}
"""Hooks without a matching module, because the module returns its output added to the stream; by model type."""
_HOOKS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_in", "hook_mlp_out", "hook_attn_out",
    "attn.hook_z", "mlp.hook_in", "mlp.hook_post",
)  # fmt: skip
_ATTENTION_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj", "attention.out_proj")


def is_hook(name: str) -> bool:
    """Return whether a name, normalised by `plain_place`, is a TransformerLens hook name."""
    return name == "hook_embed" or re.match(r"blocks\.\d+\..*\bhook_", name) is not None


def check_hook(name: str) -> None:
    """Check that a hook corresponds to the input or output of a module in transformers models.

    Args:
        name: `hook_embed`, or `blocks.N.` and a hook.

    Raises:
        InputError: If not.
    """
    hook = name.split(".", 2)[-1]
    if hook in ("ln1.hook_normalized", "ln2.hook_normalized"):
        raise InputError(
            f"{name} means normalised activations before the norm's gain, which no module reads or returns; choose "
            "a hookpoint such as the MLP's input (`layers.9.mlp.input`)"
        )
    if name != "hook_embed" and hook not in _HOOKS:
        raise InputError(
            f"{name!r} is not a hook that saeval can read; use one of {', '.join(_HOOKS)}, or a "
            f"module "
            "path such as layers.9.mlp"
        )


def transformer_lens_place(tree: ModuleTree, name: str) -> HookPoint:
    """Return the hookpoint that corresponds to a TransformerLens hook name.

    Args:
        tree: The model's modules.
        name: `hook_embed`, or `blocks.N.` and a hook.

    Raises:
        InputError: If the model has no such block or hookpoint.
    """
    check_hook(name)
    if name == "hook_embed":
        embedding = tree.model.get_input_embeddings()
        return HookPoint(next(path for path in tree.modules() if tree.module(path) is embedding))
    _, number, hook = name.split(".", 2)
    blocks = tree.blocks()
    if int(number) >= len(blocks):
        raise InputError(f"model {tree.name} has {len(blocks)} blocks, counted from 0, so there is no {name!r}")
    block = blocks[int(number)]
    path, site = _place(tree, block, hook)
    if path is None:
        raise InputError(f"model {tree.name} has no hookpoint that matches {name!r}; give a module path instead")
    return HookPoint(path, site)


def _place(tree: ModuleTree, block: str, hook: str) -> tuple[str | None, Literal["in", "out"]]:
    """Return the module path and side (input or output) of a block's hook; None as path if the model has none."""
    first = partial(tree.first_of, block)
    parts = tree.block_parts(block)
    lacking = _ADD_INSIDE.get(tree.model.config.model_type, ())
    if hook == "hook_resid_pre":
        return block, "in"
    if hook == "hook_resid_post":
        return block, "out"
    if hook in ("hook_resid_mid", "hook_mlp_in") and not getattr(tree.model.config, "use_parallel_residual", False):
        before_mlp = first(*_BEFORE_MLP)
        if before_mlp and _normalises_after_mlp(tree, block, before_mlp, parts.mlp):
            before_mlp = parts.mlp
        if first("post_feedforward_layernorm"):
            before_mlp = before_mlp or parts.mlp
        return before_mlp or first("post_attention_layernorm"), "in"
    if hook == "hook_mlp_out" and hook not in lacking:
        return parts.mlp_norm or parts.mlp, "out"
    if hook == "hook_attn_out" and hook not in lacking:
        return parts.attention_norm or parts.attention, "out"
    if hook == "attn.hook_z" and parts.attention:
        attention = parts.attention.removeprefix(f"{block}.")
        return first(*(f"{attention}.{name}" for name in _ATTENTION_OUTPUTS)), "in"
    if hook == "mlp.hook_post":
        return down_projection(block, tree.modules()), "in"
    if hook == "mlp.hook_in":
        return parts.mlp, "in"
    return None, "out"


def _normalises_after_mlp(tree: ModuleTree, block: str, norm: str, mlp: str | None) -> bool:
    """Return whether a block's second numbered norm normalises the sum with the MLP's output, as in GPT-1.

    Such a block begins with attention and defines each norm after the module whose output it normalises.
    """
    if mlp is None or norm.rpartition(".")[2] not in _NUMBERED:
        return False
    children = [f"{block}.{name}" for name, _ in tree.module(block).named_children()]
    return children.index(norm) > children.index(mlp)
