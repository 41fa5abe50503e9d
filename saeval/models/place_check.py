"""Checks, from files only, that a model has the hookpoint of a spec or a coder."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from saeval.models.facts import local_model
from saeval.models.loading import LOADING
from saeval.models.made_for import plain_place
from saeval.models.model_files import weight_names
from saeval.models.transformer_lens_names import check_hook, is_hook

if TYPE_CHECKING:
    from pathlib import Path


def check_place(model: str, place: str) -> None:
    """Check that a model has a hookpoint, as far as local files show it.

    Args:
        model: The model: hub id, folder, file or package.
        place: The hookpoint, as named in a spec or a coder's files.

    Raises:
        InputError: If it has not.
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
        _check_without_weights(model, folder, place)  # the module may have no weights, or another name in the files


def _check_without_weights(model: str, folder: Path, place: str) -> None:
    """Build the model without weights, and check that it has a hookpoint.

    Raises:
        InputError: If it has not.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from saeval.models.module_tree import ModuleTree

    empty = None
    with suppress(Exception):  # transformers raises many kinds of errors; loading the model reports them
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with LOADING, torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if empty is not None:
        ModuleTree(model, empty, None).hookpoint(place)
