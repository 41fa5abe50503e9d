"""A transformers language model as a subject: its activations read and steered at any module."""

from __future__ import annotations

import difflib
import inspect
import re
import threading
from collections import deque
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

from saeval.assets import PREFIX, asset_check, asset_path, find_asset
from saeval.coders import HookPoint, down_projection
from saeval.errors import InputError
from saeval.gguf_loading import fast_gguf
from saeval.paths import file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydantic import JsonValue
    from torch import Tensor

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_FINAL_NORMS = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "ln_out", "embedding_norm", "out_norm", "final_norm",
)  # fmt: skip

_BEFORE_MLP = (
    "pre_feedforward_layernorm", "ln_2", "ln2", "norm_2", "pre_ff_layernorm", "feedforward_layernorm", "ffn_norm",
    "norm_ffn", "channel_pre_norm",
)  # fmt: skip
_ADD_INSIDE = {"bloom": ("hook_attn_out", "hook_mlp_out"), "mpt": ("hook_mlp_out",)}
"""Modules that give back the residual stream, to which they have added, by model type."""
_MEMORIES = ("past_key_values", "cache_params", "state")

_LOADED: WeakValueDictionary[tuple[str, ...], LiveModel] = WeakValueDictionary()
_RECENT: deque[LiveModel] = deque(maxlen=2)  # stay loaded while nobody holds them
_LOADING = threading.Lock()


class LiveModel:
    """A causal language model, loaded with transformers, that lends out its activations.

    Code of a model's own repository is never run. Methods do not lock: whoever shares a model between threads holds
    `lock` around what belongs together, such as generating under steering.

    Attributes:
        name: What it was loaded by.
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        device: Torch device it is on.
        lock: To be held while the model is used.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any):
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.device = str(model.device)
        self.lock = threading.Lock()
        self._prefix = f"{model.base_model_prefix}."

    # --- Loading ---

    @classmethod
    def load(cls, name: str, *, revision: str | None = None, device: str = "auto", dtype: Dtype = "auto") -> LiveModel:
        """Return a model; the same object for the same arguments while it is in use.

        Args:
            name: Hub id, model directory, `.gguf` file, or `package:NAME` of a model that comes in a package.
            revision: Revision of the hub id.
            device: Torch device; `auto` for CUDA where there is one.
            dtype: Precision; `auto` for bfloat16 on CUDA and float32 elsewhere. Beware of float16: the residual
                stream of Gemma 3 goes beyond its range.

        Raises:
            InputError: If the model cannot be found or read, saying what to do.
        """
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        key = (name, revision or "", device, dtype)
        with _LOADING:
            live = _LOADED.get(key)
            if live is None:
                live = _LOADED[key] = cls(name, *_load(name, revision, device, getattr(torch, dtype)))
            if live not in _RECENT:
                _RECENT.append(live)
        return live

    @staticmethod
    def check(name: str) -> None:
        """See whether a model in a package or on this machine is there; a hub id is taken on trust.

        Raises:
            InputError: If it is not.
        """
        if name.startswith(PREFIX):
            asset_check(name)
        elif (path := _local(name)) is not None:
            if not path.exists():
                raise InputError(f"model {name}: no such file or folder")
            if path.is_dir() and not (path / "config.json").exists():
                raise InputError(f"model {name}: there is no config.json in it, so it is not a model folder")

    @staticmethod
    def fingerprint(name: str, revision: str | None = None) -> JsonValue:
        """Return what a model's activations depend on, wherever it lies.

        Configuration files count by content; weights by size and time of change, for hashing them would take as long
        as loading them; a hub id by its name and revision.
        """
        if name.startswith(PREFIX):
            return find_asset(name).sha256
        path = _local(name)
        if path is None:
            return [name, revision]
        files = sorted(path.glob("*.*")) if path.is_dir() else [path]
        return [
            [f.name, file_sha256(f) if f.suffix == ".json" else [f.stat().st_size, f.stat().st_mtime_ns]]
            for f in files
            if f.suffix in (".json", ".safetensors", ".bin", ".gguf", ".model", ".txt")
        ]

    # --- Places ---

    @cached_property
    def _modules(self) -> dict[str, Any]:
        """Modules by path: relative to the base model, and those outside it by their path in the whole."""
        modules = {
            path: m for path, m in self.model.named_modules() if path and not f"{path}.".startswith(self._prefix)
        }
        return {**{path: m for path, m in self.model.base_model.named_modules() if path}, **modules}

    def modules(self) -> list[str]:
        """Return the paths of all modules, relative to the base model where they lie in it (`layers.9.mlp`)."""
        return list(self._modules)

    def blocks(self) -> list[str]:
        """Return the paths of the model's blocks, in order.

        Raises:
            InputError: If it is not clear which they are.
        """
        import torch

        count = self.model.config.get_text_config().num_hidden_layers
        text = self.model.get_decoder()  # keeps to the text part of a model that also sees
        inside = {id(module) for module in text.modules()}
        found = [
            path
            for path, module in self._modules.items()
            if isinstance(module, torch.nn.ModuleList) and len(module) == count and id(module) in inside
        ]
        if len(found) > 1:  # Gemma 3n has other lists, which may happen to be as long
            found = [path for path in found if path.rpartition(".")[2] in ("layers", "h", "blocks")]
        if len(found) != 1:
            raise InputError(f"model {self.name}: cannot tell which of its modules are the blocks; name a module path")
        return [f"{found[0]}.{i}" for i in range(count)]

    def hookpoint(self, name: str) -> HookPoint:
        """Return the place that a name means.

        Args:
            name: A module path, with or without the base model's prefix, and with or without `.input` or `.output`
                behind it (`layers.9`, `model.layers.9.mlp.input`); or a name as TransformerLens gives them
                (`blocks.9.hook_resid_post`).

        Raises:
            InputError: If there is no such place.
        """
        if (path := self._path(name)) is not None:
            return HookPoint(path)
        stem, _, site = name.rpartition(".")
        if site in ("input", "output") and (path := self._path(stem)) is not None:
            return HookPoint(path, "in" if site == "input" else "out")
        if name == "hook_embed" or re.match(r"blocks\.\d+\.", name):
            return self._transformer_lens(name)
        close = difflib.get_close_matches(name.removeprefix(self._prefix), self.modules(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"its modules are called like {self.modules()[-1]!r}"
        raise InputError(f"model {self.name} has no module {name!r}; {hint}")

    def _path(self, name: str) -> str | None:
        relative = name.removeprefix(self._prefix)
        candidates = (name, relative, f"language_model.{relative}")
        return next((path for path in candidates if path in self._modules), None)

    def _transformer_lens(self, name: str) -> HookPoint:
        """Return the place whose activations are those that TransformerLens gives under a name."""
        if name == "hook_embed":
            embedding = self.model.get_input_embeddings()
            return HookPoint(next(path for path, module in self._modules.items() if module is embedding))
        _, number, hook = name.split(".", 2)
        blocks = self.blocks()
        if int(number) >= len(blocks):
            raise InputError(f"model {self.name} has {len(blocks)} blocks, counted from 0, so there is no {name!r}")
        block = blocks[int(number)]

        def first(*names: str) -> str | None:
            return next((f"{block}.{n}" for n in names if f"{block}.{n}" in self._modules), None)

        attention = first("self_attn", "attn", "attention", "self_attention")
        mlp = first("mlp", "feed_forward", "ffn", "mlp_block")
        # Some models, such as Gemma 2 and 3, normalise what attention and MLP give before it is added to the stream.
        attention_norm, mlp_norm = first("post_self_attn_layernorm"), first("post_mlp_layernorm")
        before_mlp = first(*_BEFORE_MLP)
        if normalised := first("post_feedforward_layernorm"):
            attention_norm, mlp_norm = first("post_attention_layernorm"), normalised
            before_mlp = before_mlp or mlp
        lacking = _ADD_INSIDE.get(self.model.config.model_type, ())
        place: str | None = None
        site: Literal["in", "out"] = "out"
        if hook in ("hook_resid_pre", "hook_resid_post"):
            place, site = block, "in" if hook == "hook_resid_pre" else "out"
        elif hook == "hook_resid_mid" and not getattr(self.model.config, "use_parallel_residual", False):
            place, site = before_mlp or first("post_attention_layernorm"), "in"
        elif hook == "hook_mlp_out" and hook not in lacking:
            place = mlp_norm or mlp
        elif hook == "hook_attn_out" and hook not in lacking:
            place = attention_norm or attention
        elif hook == "attn.hook_z" and attention:
            outputs = ("o_proj", "c_proj", "dense", "out_proj", "attention.out_proj")
            place, site = first(*(f"{attention.removeprefix(block + '.')}.{n}" for n in outputs)), "in"
        elif hook == "mlp.hook_post":
            place, site = down_projection(block, self.modules()), "in"
        elif hook == "mlp.hook_in":
            place, site = mlp, "in"
        elif hook in ("ln1.hook_normalized", "ln2.hook_normalized"):
            raise InputError(
                f"{name} means normalised activations before the norm's gain, which no module reads or gives; choose "
                f"a place such as {mlp or block}.input"
            )
        if place is None:
            raise InputError(f"model {self.name} has no place that matches {name!r}; name a module path instead")
        return HookPoint(place, site)

    # --- Reading and steering ---

    def width(self, hookpoint: HookPoint) -> int:
        """Return the width of the activations at a place, by running two tokens up to it."""
        import torch

        return int(self.capture(torch.zeros((1, 2), dtype=torch.int64), [hookpoint])[hookpoint].shape[-1])

    def capture(
        self, tokens: Tensor, hookpoints: Sequence[HookPoint], lengths: Tensor | None = None
    ) -> dict[HookPoint, Tensor]:
        """Run the model up to the last of some places, and return the activations there.

        Args:
            tokens: Token ids, padded on the right. Models are causal, so what the padding is makes no difference
                to what stands before it.  [contexts, tokens] int64
            hookpoints: Where to read.
            lengths: Real tokens a context; activations of the padding are then 0.  [contexts]

        Returns:
            Activations by place.  [contexts, tokens, width] float32

        Raises:
            InputError: If the text does not pass through a place, or not token by token.
        """
        import torch

        caught: dict[HookPoint, Tensor] = {}
        wanted = set(hookpoints)

        def catch(point: HookPoint, value: Any) -> None:
            if point not in caught:
                caught[point] = self._activations(point, value, tokens.shape)
                if len(caught) == len(wanted):
                    raise _Enough

        with _hooks((self._modules[point.path], point.site, _reader(point, catch)) for point in wanted):
            try:
                with torch.inference_mode():
                    self.model(input_ids=tokens.to(self.device), use_cache=False)
            except _Enough:
                pass
        if missed := sorted(str(point) for point in wanted - set(caught)):
            raise InputError(f"model {self.name}: text does not pass through {', '.join(missed)}")
        if lengths is not None:
            real = (torch.arange(tokens.shape[1]) < lengths.cpu()[:, None]).to(self.device)
            caught = {point: value * real[..., None] for point, value in caught.items()}
        return caught

    def _activations(self, point: HookPoint, value: Any, shape: tuple[int, ...]) -> Tensor:
        import torch

        tensor = _first_tensor(value)
        contexts, tokens = shape
        if tensor is not None and tensor.shape[:1] == (contexts * tokens,) and tensor.ndim == 2:
            tensor = tensor.view(contexts, tokens, -1)  # OPT and mixtures of experts see tokens in one row
        if tensor is None or tensor.shape[:2] != (contexts, tokens) or tensor.ndim < 3:
            seen = "no tensor" if tensor is None else f"shape {list(tensor.shape)}"
            raise self._not_a_token_each(point, seen, contexts, tokens)
        # A copy, for modules after it may change it in place.
        activations: Tensor = tensor.flatten(2).to(torch.float32, copy=True)
        return activations - activations.mean(dim=-1, keepdim=True) if point.center else activations

    def _not_a_token_each(self, point: HookPoint, seen: str, contexts: int, tokens: int) -> InputError:
        return InputError(
            f"model {self.name}: {point} does not hold one activation a token ({seen} for {contexts} contexts of "
            f"{tokens} tokens); choose another module"
        )

    @contextmanager
    def steer(self, hookpoint: HookPoint, direction: Tensor, strength: float, first: int = 0) -> Iterator[None]:
        """Add `strength * direction` at a place, in every forward pass, while the context lasts.

        Args:
            hookpoint: Where.
            direction: What to add.  [width]
            strength: How much of it.
            first: Token of each forward pass to begin at; those before it stay as they are.

        Raises:
            InputError: In the forward pass, if the place does not hold one activation a token.
        """
        import torch

        push = strength * direction.to(self.device)
        read: list[tuple[int, int]] = []

        def see(ids: Tensor) -> None:
            read[:] = [(ids.shape[0], ids.shape[1])]

        def pushed(tensor: Tensor) -> Tensor:
            contexts, tokens = read[0] if read else tensor.shape[:2]
            if tensor.shape[:2] != (contexts, tokens) and tensor.shape[0] != contexts * tokens:
                raise self._not_a_token_each(hookpoint, f"shape {list(tensor.shape)}", contexts, tokens)
            rows = tensor.reshape(contexts, tokens, -1)
            return torch.cat([rows[:, :first], rows[:, first:] + push.to(tensor.dtype)], dim=1).view(tensor.shape)

        def add(value: Any) -> Any:
            return _replace_first(value, pushed)

        # Tokens may come to the place in one row; the embedding is given them by contexts.
        embedding = self.model.get_input_embeddings()
        with _hooks([(embedding, "in", see), (self._modules[hookpoint.path], hookpoint.site, add)]):
            yield

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
            The memory; None where the model has none that can be relied on, so that it must read everything anew.
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
        """What the model calls its memory, where going on from a copy of it gives what reading everything anew gives.

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

    def _agree(self, made: Tensor, expected: Tensor) -> bool:
        """Whether logits that were made in two ways are the same but for rounding."""
        import torch

        if made.shape != expected.shape:
            return False
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        return float((made - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))

    # --- Reading directions ---

    def module(self, path: str) -> Any:
        """Return the module at a path, as `modules()` lists it."""
        return self._modules[path]

    def block_of(self, path: str) -> int | None:
        """Return the number of the block that a module lies in; None where it lies in none."""
        return next((i for i, block in enumerate(self.blocks()) if f"{path}.".startswith(f"{block}.")), None)

    @cached_property
    def logit_rules(self) -> tuple[float | None, float]:
        """Soft cap (or None) and scale that the model applies to its logits, as its configuration says.

        Raises:
            InputError: If they do not lead from its last hidden state to its logits.
        """
        import torch

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
            raise InputError(f"model {self.name} makes its logits in a way that is not known here")
        return cap, scale

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return logits of last hidden states (after the final norm).  [positions, width] -> [positions, vocabulary]

        Raises:
            InputError: If the model's way from one to the other is not known.
        """
        return self._logits(hidden, *self.logit_rules)

    def _logits(self, hidden: Tensor, cap: float | None, scale: float) -> Tensor:
        head = self.model.get_output_embeddings()
        logits: Tensor = head(hidden.to(head.weight.dtype)).float()  # Mamba's residual stream is float32 in any case
        logits = logits * scale if scale != 1 else logits
        return (logits / cap).tanh() * cap if cap is not None else logits

    def unembed_direction(self, direction: Tensor) -> Tensor:
        """Return what a direction of the residual stream adds to the logits, up to a common positive factor.

        Args:
            direction: The direction.  [width]

        Returns:
            Logits, before any soft cap.  [vocabulary] float32

        Raises:
            InputError: If `unembed(norm(residual))` does not give this model's logits.
        """
        norm, weight = self._final_norm, self.model.get_output_embeddings().weight
        x = direction.to(next(iter(norm.parameters()), weight).dtype)
        # Half the difference of norm(x) and norm(-x) is the norm's linear part: no bias, only a factor.
        linear = (norm(x) - norm(-x)) / 2
        logits: Tensor = (linear.to(weight.dtype) @ weight.T).float()
        return logits

    @cached_property
    def _final_norm(self) -> Any:
        """The norm between the last block and the unembedding, found by name and checked against the model."""
        import torch

        self.logit_rules  # noqa: B018 - refuses models whose unembedding is not known
        text = self.model.get_decoder()
        norm = next((m for name in _FINAL_NORMS if (m := getattr(text, name, None)) is not None), None)
        seen: dict[str, Any] = {}
        if norm is not None:
            block = self._modules[self.blocks()[-1]]
            places = [(block, "out", "block"), (norm, "in", "before"), (norm, "out", "after")]
            with _hooks((m, site, partial(_keep, seen, label)) for m, site, label in places), torch.inference_mode():
                tokens = torch.arange(3, 9, device=self.device)[None]
                seen["state"] = self.model.base_model(tokens, use_cache=False).last_hidden_state
        same = all(
            torch.is_tensor(seen.get(a)) and torch.is_tensor(seen.get(b)) and torch.equal(seen[a], seen[b])
            for a, b in (("block", "before"), ("after", "state"))
        )
        if norm is None or not same:
            raise InputError(
                f"model {self.name} has no final norm that is known here between its last block and its unembedding, so "
                "no lens can read directions"
            )
        return norm

    def next_logprobs(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return log-probabilities (nats) of what comes after each context.

        Args:
            tokens: Token ids, padded on the right.  [contexts, tokens] int64
            lengths: Real tokens a context; all when None.  [contexts]

        Returns:
            Log-probabilities.  [contexts, vocabulary] float32
        """
        import torch

        last = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths.cpu()
        kept, column = torch.unique(last - 1, return_inverse=True)
        options: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = kept.to(self.device)
        else:
            column = last - 1
        with torch.inference_mode():
            logits = self.model(input_ids=tokens.to(self.device), use_cache=False, **options).logits
            logprobs: Tensor = logits[torch.arange(len(tokens)), column].float().log_softmax(dim=-1)
        return logprobs


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


# --- Hooks --------------------------------------------------------------------------------------------------


class _Enough(BaseException):
    """Ends a forward pass when all that was wanted is there; no model's own `except Exception` may stop it."""


@contextmanager
def _hooks(places: Any) -> Iterator[None]:
    """Call functions on the outputs or first inputs of modules while the context lasts.

    Args:
        places: (module, site, function); what a function returns takes the value's place, unless it is None.
    """
    handles = []

    def after(function: Callable[[Any], Any]) -> Any:
        return lambda _module, _args, _kwargs, output: function(output)

    def before(function: Callable[[Any], Any]) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = function(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            new = function(kwargs[name])
            return None if new is None else (args, {**kwargs, name: new})

        return hook

    try:
        for module, site, function in places:
            if site == "in":
                handles.append(module.register_forward_pre_hook(before(function), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(after(function), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(point: HookPoint, catch: Callable[[HookPoint, Any], None]) -> Callable[[Any], None]:
    return lambda value: catch(point, value)


def _first_tensor(value: Any) -> Any:
    """Return the hidden states in what a module is given or gives: a tensor, or the first thing in a tuple."""
    import torch

    while isinstance(value, tuple | list) and value:
        value = value[0]
    value = getattr(value, "last_hidden_state", value)
    return value if torch.is_tensor(value) else None


def _keep(seen: dict[str, Any], label: str, value: Any) -> None:
    """Keep what a module is given or gives, as it is at that moment."""
    tensor = _first_tensor(value)
    seen[label] = None if tensor is None else tensor.clone()


def _replace_first(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple | list):
        changed = [_replace_first(value[0], change), *value[1:]]
        return tuple(changed) if isinstance(value, tuple) else changed
    return change(value)


# --- Loading ------------------------------------------------------------------------------------------------


def _local(name: str) -> Path | None:
    """Return the path that a name means, or None for a hub id."""
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        return path
    return None


def _load(name: str, revision: str | None, device: str, dtype: Any) -> tuple[Any, Any]:
    LiveModel.check(name)
    path = asset_path(name) if name.startswith(PREFIX) else _local(name)
    try:
        with _quiet():
            if path is not None and path.is_file():
                with fast_gguf(path):
                    model, tokenizer, missing = _from_pretrained(path.parent, dtype, gguf_file=path.name)
            else:
                model, tokenizer, missing = _from_pretrained(path or name, dtype, revision=revision)
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds; each means that the model cannot be had
        raise InputError(f"model {name} {_reason(error, local=path is not None)}") from error
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise InputError(f"model {name}: its files lack {len(missing)} weights ({some} …); fetch it again")
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0  # RWKV would halve its residual stream every few blocks
    try:
        model = model.eval().requires_grad_(False).to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"model {name} cannot be put on the device {device!r}: {_first_line(error)}") from error
    return model, tokenizer


def _from_pretrained(place: str | Path, dtype: Any, **options: Any) -> tuple[Any, Any, list[str]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    model, info = AutoModelForCausalLM.from_pretrained(
        place, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
    )
    return model, tokenizer, list(info["missing_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings, which are about other uses of models, off the screen."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


_HUB_REASONS = {
    "GatedRepoError": "is gated: accept its terms on its Hugging Face page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "is not on the Hugging Face hub; check its name, or log in with `hf auth login` if it is private",
    "HFValidationError": "is neither a folder nor a name on the Hugging Face hub, such as google/gemma-3-270m",
    "RevisionNotFoundError": "has no such revision on the Hugging Face hub",
    "LocalEntryNotFoundError": "is not on this machine, and the Hugging Face hub cannot be reached; connect (and unset "
    "HF_HUB_OFFLINE), or give the path of a model folder or .gguf file",
}
"""Why a model could not be had from the hub, by exceptions that may stand anywhere in the chain."""


def _reason(error: Exception, *, local: bool) -> str:
    """Say in words why a model could not be loaded, and what to do."""
    if "trust_remote_code" in str(error):
        return "comes with code of its own, which saeval does not run; choose a model that transformers supports"
    if local:
        return (
            f"cannot be read ({type(error).__name__}: {_first_line(error)}); is it whole, and a causal language model?"
        )
    kinds: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    known = (text for kind, text in _HUB_REASONS.items() if kind in kinds)
    return next(known, f"cannot be loaded ({type(error).__name__}: {_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
