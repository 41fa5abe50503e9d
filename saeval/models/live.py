"""A transformers language model as a subject: its activations read and steered at any module."""

from __future__ import annotations

import difflib
import inspect
import re
import threading
from collections import deque
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

from saeval._util import PREFIX, InputError, file_sha256, find_asset
from saeval.models.coders import HookPoint, down_projection
from saeval.models.facts import local_model, not_causal, too_long
from saeval.models.fit import Fit, no_bos
from saeval.models.loading import check_model, load_model, resolved
from saeval.models.made_for import plain_place
from saeval.models.module_hooks import Enough, first_tensor, hooked, keep, reader, replace_first

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
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")
_MEMORIES = ("past_key_values", "cache_params", "state")

_LOADED: WeakValueDictionary[tuple[str, ...], LiveModel] = WeakValueDictionary()
_RECENT: deque[LiveModel] = deque(maxlen=2)  # stay loaded while nobody holds them
_LOADING = threading.Lock()
_ONLY_LOADED: ContextVar[bool] = ContextVar("only_loaded", default=False)


@contextmanager
def only_loaded() -> Iterator[None]:
    """Lend models that are in memory, and refuse to load any other."""
    before = _ONLY_LOADED.set(True)
    try:
        yield
    finally:
        _ONLY_LOADED.reset(before)


class LiveModel:
    """A causal language model, loaded with transformers, that lends out its activations.

    Code of a model's own repository is never run. Methods do not lock: whoever shares a model between threads holds
    `lock` around what belongs together, such as generating under steering.

    Attributes:
        name: What it was loaded by.
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        has_head: Whether its files hold an unembedding; without one, only activations can be had.
        device: Torch device it is on.
        lock: To be held while the model is used.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, has_head: bool = True):
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.has_head = has_head
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
            device: Torch device; `auto` for CUDA where there is one, `balanced` to spread the model over all GPUs.
            dtype: Precision; `auto` for bfloat16 on CUDA and float32 elsewhere. Beware of float16: the residual
                stream of Gemma 3 goes beyond its range.

        Raises:
            InputError: If the model cannot be found or read, saying what to do.
        """
        import torch

        device, precision = resolved(device, dtype)
        key = (name, revision or "", device, precision)
        with _LOADING:
            live = _LOADED.get(key)
            if live is None and _ONLY_LOADED.get():
                raise InputError(f"model {name}: is not in memory")
            if live is None:
                live = _LOADED[key] = cls(name, *load_model(name, revision, device, getattr(torch, precision)))
            if live not in _RECENT:
                _RECENT.append(live)
        return live

    @staticmethod
    def resolved(device: str, dtype: Dtype) -> tuple[str, str]:
        """Return the device and precision that `auto` means on this machine; what depends on a model depends on these."""
        return resolved(device, dtype)

    @staticmethod
    def check(name: str) -> None:
        """See whether a model in a package or on this machine is there; a hub id is taken on trust.

        Raises:
            InputError: If it is not.
        """
        check_model(name)

    @staticmethod
    def fingerprint(name: str, revision: str | None = None) -> JsonValue:
        """Return what a model's activations depend on, wherever it lies.

        Configuration files count by content; weights by size and time of change, for hashing them would take as long
        as loading them; a hub id by its name and revision.
        """
        if name.startswith(PREFIX):
            return find_asset(name).sha256
        path = local_model(name)
        if path is None:
            return [name, revision]
        files = sorted(path.glob("*.*")) if path.is_dir() else [path]
        return [
            [f.name, file_sha256(f) if f.suffix == ".json" else [f.stat().st_size, f.stat().st_mtime_ns]]
            for f in files
            if f.suffix in (".json", ".safetensors", ".bin", ".gguf", ".model", ".txt")
        ]

    # --- Limits ---

    @cached_property
    def positions(self) -> int | None:
        """Tokens per context at most, where the model looks positions up in a table; None where there is no such limit."""
        import torch

        tables = [
            module.num_embeddings - int(getattr(module, "offset", 0))
            for path, module in self.model.named_modules()
            if path.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, torch.nn.Embedding)
        ]
        tables += [len(b) for path, b in self.model.named_buffers() if path.endswith(".embed_positions")]
        return min(tables, default=None)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: token numbers lie below."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def causal(self) -> bool:
        """Whether what it computes at a token is the same whatever follows, tried out on two texts."""
        import torch

        tokens = (torch.arange(8) % self.vocabulary).repeat(2, 1)
        tokens[1, -1] = 0
        with torch.inference_mode():
            seen = self.model.base_model(tokens.to(self.device), use_cache=False).last_hidden_state
        return self._agree(seen[0, :-1].float(), seen[1, :-1].float())

    @cached_property
    def centring(self) -> bool:
        """Whether its norms ignore the mean of what they read (LayerNorm), so that centred weights change nothing."""
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
        """Refuse contexts that the model cannot read from left to right.

        Args:
            tokens: Tokens per context, those before the text included.

        Raises:
            InputError: If it cannot.
        """
        if self.positions is not None and tokens > self.positions:
            raise too_long(self.name, self.positions, tokens)
        if not self.causal:
            raise not_causal(self.name)

    def cautions(self, fit: Fit) -> list[str]:
        """Say what of a coder's training this model cannot follow, though it was not to be told from files."""
        lacks = fit.made_for.prepend_bos is True and fit.bos is True and self.tokenizer.bos_token_id is None
        return [no_bos()] if lacks else []

    def same(self, first: HookPoint, second: HookPoint) -> bool:
        """Whether the same activations are read at two places, which may have several names, tried out on a text."""
        import torch

        if first == second:
            return True
        tokens = (torch.arange(8) % self.vocabulary)[None]
        try:
            seen = self.capture(tokens, [first, second])
        except InputError:
            return False
        return torch.equal(seen[first], seen[second])

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
        asked, name = name, plain_place(name)
        if (path := self._path(name)) is not None:
            return HookPoint(path)
        stem, _, site = name.rpartition(".")
        if site in ("input", "output") and (path := self._path(stem)) is not None:
            return HookPoint(path, "in" if site == "input" else "out")
        if name == "hook_embed" or re.match(r"blocks\.\d+\.", name):
            return self._transformer_lens(name)
        close = difflib.get_close_matches(name.removeprefix(self._prefix), self.modules(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"its modules are called like {self.modules()[-1]!r}"
        raise InputError(f"model {self.name} has no module {asked!r}; {hint}")

    def _path(self, name: str) -> str | None:
        relative = name
        while relative.startswith(self._prefix):
            relative = relative.removeprefix(self._prefix)
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

        first = partial(self._first, block)
        attention, mlp, attention_norm, mlp_norm = self._parts(block)
        before_mlp = first(*_BEFORE_MLP)
        if first("post_feedforward_layernorm"):
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

    def _first(self, block: str, *names: str) -> str | None:
        """Return the path of the first of some modules that a block has."""
        return next((f"{block}.{n}" for n in names if f"{block}.{n}" in self._modules), None)

    def _parts(self, block: str) -> _Parts:
        """Return the parts of a block."""
        first = partial(self._first, block)
        # Some models, such as Gemma 2 and 3, normalise what attention and MLP give before it is added to the stream.
        attention_norm, mlp_norm = first("post_self_attn_layernorm"), first("post_mlp_layernorm")
        if normalised := first("post_feedforward_layernorm"):
            attention_norm, mlp_norm = first("post_attention_layernorm"), normalised
        attention = first("self_attn", "attn", "attention", "self_attention")
        return _Parts(attention, first("mlp", "feed_forward", "ffn", "mlp_block"), attention_norm, mlp_norm)

    def norm_after(self, path: str) -> Any:
        """Return the norm through which what a module gives is added to the stream; None where it is added as it is."""
        number = self.block_of(path)
        if number is None:
            return None
        parts = self._parts(self.blocks()[number])
        for part, norm in ((parts.attention, parts.attention_norm), (parts.mlp, parts.mlp_norm)):
            if part is not None and norm is not None and f"{path}.".startswith(f"{part}."):
                return self._modules[norm]
        return None

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
            lengths: Real tokens per context; activations of the padding are then 0.  [contexts]

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
                    raise Enough

        with hooked((self._modules[point.path], point.site, reader(point, catch)) for point in wanted):
            try:
                with torch.inference_mode():
                    self.model(input_ids=tokens.to(self.device), use_cache=False)
            except Enough:
                pass
            except IndexError as error:
                raise InputError(
                    f"model {self.name}: a token or its position lies outside the model's tables ({error}); check that the "
                    "tokenizer belongs to the model, and set a smaller corpus.context"
                ) from error
        if missed := sorted(str(point) for point in wanted - set(caught)):
            raise InputError(f"model {self.name}: text does not pass through {', '.join(missed)}")
        if lengths is not None:
            real = (torch.arange(tokens.shape[1]) < lengths.cpu()[:, None]).to(self.device)
            caught = {point: value * real[..., None] for point, value in caught.items()}
        return caught

    def _activations(self, point: HookPoint, value: Any, shape: tuple[int, ...]) -> Tensor:
        import torch

        tensor = first_tensor(value)
        contexts, tokens = shape
        if tensor is not None and tensor.shape[:1] == (contexts * tokens,) and tensor.ndim == 2:
            tensor = tensor.view(contexts, tokens, -1)  # OPT and mixtures of experts see tokens in one row
        if tensor is None or tensor.shape[:2] != (contexts, tokens) or tensor.ndim < 3:
            seen = "no tensor" if tensor is None else f"shape {list(tensor.shape)}"
            raise self._not_a_token_each(point, seen, contexts, tokens)
        # A copy, for modules after it may change it in place.
        activations: Tensor = tensor.flatten(2).to(self.device, torch.float32, copy=True)
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

        def pushed(rows: Tensor) -> Tensor:
            return torch.cat([rows[:, :first], rows[:, first:] + push.to(rows)], dim=1)

        with self.changed(hookpoint, pushed):
            yield

    @contextmanager
    def changed(self, hookpoint: HookPoint, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Put what `change` makes of the activations at a place in their stead, while the context lasts.

        Args:
            hookpoint: Where.
            change: Given activations [contexts, tokens, width], returns as many.

        Raises:
            InputError: In the forward pass, if the place does not hold one activation a token.
        """
        read: list[tuple[int, int]] = []

        def see(ids: Tensor) -> None:
            read[:] = [(ids.shape[0], ids.shape[1])]

        def put(tensor: Tensor) -> Tensor:
            contexts, tokens = read[0] if read else tensor.shape[:2]
            if tensor.shape[:2] != (contexts, tokens) and tensor.shape[0] != contexts * tokens:
                raise self._not_a_token_each(hookpoint, f"shape {list(tensor.shape)}", contexts, tokens)
            return change(tensor.reshape(contexts, tokens, -1)).reshape(tensor.shape)

        # Tokens may come to the place in one row; the embedding is given them by contexts.
        embedding = self.model.get_input_embeddings()
        places = [
            (embedding, "in", see),
            (self._modules[hookpoint.path], hookpoint.site, partial(replace_first, change=put)),
        ]
        with hooked(places):
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
            The memory; None where the model has none that can be relied on, so that it must read everything again.
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

    def _agree(self, made: Tensor, expected: Tensor) -> bool:
        """Whether logits that were made in two ways are the same but for rounding."""
        import torch

        if made.shape != expected.shape:
            return False
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        return float((made - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))

    def direct_effect(self, point: HookPoint, directions: Tensor, tokens: Tensor) -> Tensor:
        """Return what adding directions at a place changes in what its block gives, without the block's other parts reacting.

        Measured on a text: half the difference that a small step to either side makes at each token, all tokens being
        pushed at once, and attention and MLP held to what they gave before unless the place lies in them.

        Args:
            point: A place in a block.
            directions: The directions.  [directions, width]
            tokens: The text.  [tokens] int64

        Returns:
            Changes, per length of what is added.  [directions, tokens, residual width] float32
        """
        import torch

        block = self.blocks()[self.block_of(point.path) or 0]
        inside = f"{point.path}."
        others = [
            f"{block}.{name}"
            for name, module in self._modules[block].named_children()
            if not inside.startswith(f"{block}.{name}.") and _reacts(module)
        ]
        step = 1e-2 if self.model.dtype == torch.float32 else 0.1
        text = tokens[None]
        length = step * self.capture(text, [point])[point].norm(dim=-1).mean()
        units = torch.nn.functional.normalize(directions.to(self.device, torch.float32), dim=-1)
        pushes = torch.cat([torch.zeros_like(units[:1]), length * units, -length * units])

        def as_before(rows: Tensor) -> Tensor:
            return rows[:1].expand_as(rows).contiguous()

        with ExitStack() as held:
            held.enter_context(self.changed(point, lambda rows: rows + pushes[:, None].to(rows)))
            for path in others:
                held.enter_context(self.changed(HookPoint(path), as_before))
            seen = self.capture(text.expand(len(pushes), -1), [HookPoint(block)])[HookPoint(block)]
        n = len(units)
        changes: Tensor = (seen[1 : n + 1] - seen[n + 1 :]) / (2 * length)
        return changes

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

        self.head  # noqa: B018 - refuses models without one
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

    @property
    def head(self) -> Any:
        """The unembedding.

        Raises:
            InputError: If the model's files hold none.
        """
        if not self.has_head:
            raise InputError(
                f"model {self.name}: its files hold no unembedding (lm_head), so it gives activations but no logits; take the "
                "whole causal language model"
            )
        return self.model.get_output_embeddings()

    def _logits(self, hidden: Tensor, cap: float | None, scale: float) -> Tensor:
        head = self.head
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
        norm, weight = self._final_norm, self.head.weight
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
            with hooked((m, site, partial(keep, seen, label)) for m, site, label in places), torch.inference_mode():
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
            lengths: Real tokens per context; all when None.  [contexts]

        Returns:
            Log-probabilities.  [contexts, vocabulary] float32
        """
        import torch

        self.head  # noqa: B018 - refuses models without one
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


def _reacts(module: Any) -> bool:
    """Whether a part of a block computes something of its own from the stream: it has weights, and is no norm."""
    return "norm" not in type(module).__name__.lower() and any(True for _ in module.parameters())


class _Parts(NamedTuple):
    """Paths of a block's parts, where it has them.

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
