"""Reads and changes activations of a model while it runs."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from saeval._util import InputError
from saeval.models.coders import HookPoint
from saeval.models.module_hooks import Enough, first_tensor, hooked, reader, replace_first
from saeval.models.module_tree import ModuleTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor


class HookedModel(ModuleTree):
    """A model whose activations can be read, replaced and steered at any hookpoint."""

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
                to what precedes it.  [contexts, tokens] int64
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
                    f"model {self.name}: a token or its position lies outside the model's tables ({error}); check "
                    "that the tokenizer belongs to the model, and set a smaller corpus.context"
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
            f"model {self.name}: {point} does not give one activation per token ({seen} for {contexts} contexts of "
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
        """Replace the activations at a hookpoint by `change` of them, while the context lasts.

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

    def same(self, first: HookPoint, second: HookPoint) -> bool:
        """Return whether two hookpoints give the same activations, tested on a text."""
        import torch

        if first == second:
            return True
        tokens = (torch.arange(8) % self.vocabulary)[None]
        try:
            seen = self.capture(tokens, [first, second])
        except InputError:
            return False
        return torch.equal(seen[first], seen[second])

    def direct_effect(self, point: HookPoint, directions: Tensor, tokens: Tensor) -> Tensor:
        """Return the direct effect of directions at a place on the output of their block.

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

    def _agree(self, made: Tensor, expected: Tensor) -> bool:
        """Whether logits that were made in two ways are the same but for rounding."""
        import torch

        if made.shape != expected.shape:
            return False
        made = made.to(expected.device)
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        return float((made - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def _reacts(module: Any) -> bool:
    """Whether a part of a block computes something of its own from the stream: it has weights, and is no norm."""
    return "norm" not in type(module).__name__.lower() and any(True for _ in module.parameters())
