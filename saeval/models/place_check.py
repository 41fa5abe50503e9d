"""Checks from files whether a model has the hookpoint that a spec or a coder names."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from saeval.models.facts import local_model
from saeval.models.made_for import plain_place
from saeval.models.model_files import weight_names
from saeval.models.transformer_lens_names import check_hook, is_hook

if TYPE_CHECKING:
    from pathlib import Path


def check_place(model: str, place: str) -> None:
    """Refuse a hookpoint that a model does not have, if local files show it.

    Args:
        model: The model: hub id, folder, file or package.
        place: The place, as a spec or a coder's files name it.

    Raises:
        InputError: If it is not there.
    """
    named = plain_place(place)
    if is_hook(named):
        check_hook(named)
        return
    folder = local_model(model)
    if folder is None or not folder.is_dir():
        return
    module = f".{named.removesuffix('.input').removesuffix('.output')}."
    weights = weight_names(folder)
    if weights and not any(module in f".{weight}" for weight in weights):
        _look_for(model, folder, place)  # it may still have no weights of its own, or another name in the files


def _look_for(model: str, folder: Path, place: str) -> None:
    """Build the model without weights, and look for a place in it.

    Raises:
        InputError: If it has no such place.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from saeval.models.module_tree import ModuleTree

    empty = None
    with suppress(Exception):  # transformers raises many kinds; loading the model reports them
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if empty is not None:
        ModuleTree(model, empty, None).hookpoint(place)
