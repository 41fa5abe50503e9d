"""Loads each transformers language model once, and checks its limits."""

from __future__ import annotations

import gc
import json
import sys
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

from saeval._util import PREFIX, file_sha256, find_asset
from saeval.models.facts import local_model, not_causal, too_long
from saeval.models.fit import Fit, no_bos
from saeval.models.generating_model import GeneratingModel
from saeval.models.loading import LOADING, WEIGHTS, check_model, check_room, load_model, resolved
from saeval.models.randomise import Randomised, shuffle_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")

_HASHED = (".json", ".jinja", ".tiktoken")
_IDENTIFIED = (*WEIGHTS, ".model", ".txt")

_LOADED: WeakValueDictionary[tuple[str, ...], LiveModel] = WeakValueDictionary()
_RECENT: deque[LiveModel] = deque(maxlen=2)  # keeps the last models loaded while unused
_ONLY_LOCAL: ContextVar[bool] = ContextVar("only_local", default=False)


@contextmanager
def only_local() -> Iterator[None]:
    """Within this context, load no model that must be downloaded or exceeds the free memory; it raises an error."""
    before = _ONLY_LOCAL.set(True)
    try:
        yield
    finally:
        _ONLY_LOCAL.reset(before)


def on_gpu() -> bool:
    """Return whether this process uses CUDA, and so holds GPU memory that other processes may need."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def release_models() -> None:
    """Release unused models and their GPU memory."""
    _RECENT.clear()
    gc.collect()
    if on_gpu():
        sys.modules["torch"].cuda.empty_cache()


class LiveModel(GeneratingModel):
    """A causal language model, loaded with transformers, whose activations can be read and steered.

    It is built in layers: `ModuleTree` finds modules, `HookedModel` reads and changes activations, `LogitModel`
    computes logits and `GeneratingModel` generates text. Code from a model's repository is never run. Methods do not
    lock: code that shares a model between threads holds `lock` during operations that belong together, such as
    generating with steering.
    """

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        randomise: Randomised | None = None,
        randomise_seed: int = 0,
    ) -> LiveModel:
        """Return a model; the same object for the same arguments while it is in use.

        Args:
            name: Hub id, model directory, `.gguf` file, or `package:NAME` of a packaged model. If its files changed
                since it was loaded, they are read again.
            revision: Revision of the hub id.
            device: Torch device; `auto` for CUDA if available, `balanced` to distribute the model over all GPUs.
            dtype: Precision; `auto` for bfloat16 on CUDA and float32 elsewhere. Avoid float16: the residual stream of
                Gemma 3 exceeds its range.
            randomise: Matrices whose entries are shuffled, for a control: `weights` (all but the embeddings),
                `embeddings` or `all`. The model's name then includes it.
            randomise_seed: Seed of the shuffling.

        Raises:
            InputError: If the model cannot be found or read.
        """
        import torch

        device, precision = resolved(device, dtype)
        check_model(name)
        files = json.dumps(cls.fingerprint(name, revision))  # a folder may be overwritten while its model is in memory
        seed = str(randomise_seed if randomise else 0)
        key = (name, revision or "", files, device, precision, randomise or "", seed)
        with LOADING:
            live = _LOADED.get(key)
            if live is None:
                if _ONLY_LOCAL.get():
                    check_room(name, revision, device, getattr(torch, precision))
                model, *rest = load_model(name, revision, device, getattr(torch, precision))
                if randomise:
                    shuffle_weights(model, randomise, randomise_seed)
                    name = f"{name} ({randomise} shuffled, seed {randomise_seed})"
                live = _LOADED[key] = cls(name, model, *rest)
            if live not in _RECENT:
                _RECENT.append(live)
        return live

    @staticmethod
    def resolved(device: str, dtype: Dtype) -> tuple[str, str]:
        """Return the device and precision that `auto` means on this machine."""
        return resolved(device, dtype)

    @staticmethod
    def check(name: str) -> None:
        """Check that a packaged or local model exists; hub ids are not checked.

        Raises:
            InputError: If not.
        """
        check_model(name)

    @staticmethod
    def fingerprint(name: str, revision: str | None = None) -> JsonValue:
        """Return everything that a model's activations depend on, independent of its location.

        Configuration, chat templates and tiktoken vocabularies are hashed; weights are identified by size and
        modification time, since hashing them takes as long as loading them; a hub id by name and revision.
        """
        if name.startswith(PREFIX):
            return find_asset(name).sha256
        path = local_model(name)
        if path is None:
            return [name, revision]
        folder, files = path.parent, [path]
        if path.is_dir():
            folder = path
            files = [*sorted(path.glob("*.*")), *sorted(path.glob("additional_chat_templates/*.jinja"))]
        found: list[JsonValue] = []
        for file in files:
            inside = file.relative_to(folder).as_posix()
            if file.suffix in _HASHED:
                found.append([inside, file_sha256(file)])
            elif file.suffix in _IDENTIFIED:
                found.append([inside, [file.stat().st_size, file.stat().st_mtime_ns]])
        return found

    @cached_property
    def positions(self) -> int | None:
        """Maximum tokens per context if positions are looked up in a table; None without such a limit."""
        import torch

        text = self.model.get_decoder()  # a vision tower has positions of its own
        tables = [
            module.num_embeddings - int(getattr(module, "offset", 0))
            for path, module in text.named_modules()
            if path.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, torch.nn.Embedding)
        ]
        tables += [len(b) for path, b in text.named_buffers() if path.rpartition(".")[2] == "embed_positions"]
        return min(tables, default=None)

    @cached_property
    def causal(self) -> bool:
        """Whether its output at a token is independent of later tokens; tested on two texts."""
        import torch

        tokens = (torch.arange(8) % self.vocabulary).repeat(2, 1)
        tokens[1, -1] = 0
        with torch.inference_mode():
            seen = self.model.base_model(tokens.to(self.device), use_cache=False).last_hidden_state
        return self._agree(seen[0, :-1].float(), seen[1, :-1].float())

    @cached_property
    def centring(self) -> bool:
        """Whether its norms subtract the mean of their input (LayerNorm), so that centring weights has no effect."""
        import torch

        width = self.model.config.get_text_config().hidden_size
        x = torch.linspace(-1, 2, width, device=self.device, dtype=self.model.dtype)[None]
        for module in self._modules.values():
            weights = [tuple(weight.shape) for weight in module.parameters()]
            if "norm" in type(module).__name__.lower() and all(shape == (width,) for shape in weights):
                with torch.inference_mode():
                    return bool(torch.allclose(module(x), module(x + 1), atol=1e-2))
        return True

    def check_contexts(self, tokens: int) -> None:
        """Check that the model is causal and supports contexts of this length.

        Args:
            tokens: Tokens per context, including those before the text.

        Raises:
            InputError: If not.
        """
        if self.positions is not None and tokens > self.positions:
            raise too_long(self.name, self.positions, tokens)
        if not self.causal:
            raise not_causal(self.name)

    def cautions(self, fit: Fit) -> list[str]:
        """Return warnings about a coder's training setup that require the loaded model."""
        lacks = fit.made_for.prepend_bos is True and fit.bos is True and self.tokenizer.bos_token_id is None
        return [no_bos()] if lacks else []
