"""Reads and changes a model's activations during the forward pass."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from saeval._util import InputError
from saeval.models.coders import HookPoint
from saeval.models.module_hooks import StopForward, first_tensor, hooked, reader, replace_first
from saeval.models.module_tree import ModuleTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor


class HookedModel(ModuleTree):
    """A model whose activations can be read, replaced and steered at any hookpoint."""

    def width(self, hookpoint: HookPoint) -> int:
        """Return the width of the activations at a hookpoint, by running two tokens up to it."""
        import torch

        return int(self.capture(torch.zeros((1, 2), dtype=torch.int64), [hookpoint])[hookpoint].shape[-1])

    def capture(
        self, tokens: Tensor, hookpoints: Sequence[HookPoint], lengths: Tensor | None = None
    ) -> dict[HookPoint, Tensor]:
        """Run the model up to the last of some hookpoints, and return the activations there.

        Args:
            tokens: Token ids, padded on the right. Models are causal, so the padding does not affect the tokens before
                it.  [contexts, tokens] int64
            hookpoints: The hookpoints.
            lengths: Number of tokens per context without padding; sets activations on padding to 0.  [contexts]

        Returns:
            Activations by hookpoint.  [contexts, tokens, width] float32

        Raises:
            InputError: If a hookpoint is not used in the forward pass, or does not have one activation per token.
        """
        import torch

        caught: dict[HookPoint, Tensor] = {}
        wanted = set(hookpoints)

        def catch(point: HookPoint, value: Any) -> None:
            if point not in caught:
                caught[point] = self._activations(point, value, tokens.shape)
                if len(caught) == len(wanted):
                    raise StopForward

        with hooked((self._modules[point.path], point.site, reader(point, catch)) for point in wanted):
            try:
                with torch.inference_mode():
                    self.model(input_ids=tokens.to(self.device), use_cache=False)
            except StopForward:
                pass
            except IndexError as error:
                raise InputError(
                    f"model {self.name}: a token or its position lies outside the model's tables ({error}); check "
                    "that the tokenizer belongs to the model, and set a smaller corpus.context"
                ) from error
        if missed := sorted(str(point) for point in wanted - set(caught)):
            raise InputError(
                f"model {self.name}: the forward pass does not use {', '.join(missed)}; choose another hookpoint"
            )
        if lengths is not None:
            real = (torch.arange(tokens.shape[1]) < lengths.cpu()[:, None]).to(self.device)
            caught = {point: value * real[..., None] for point, value in caught.items()}
        return caught

    def _activations(self, point: HookPoint, value: Any, shape: tuple[int, ...]) -> Tensor:
        import torch

        tensor = first_tensor(value)
        contexts, tokens = shape
        if tensor is not None and tensor.shape[:1] == (contexts * tokens,) and tensor.ndim == 2:
            tensor = tensor.view(contexts, tokens, -1)  # OPT and mixtures of experts flatten contexts and tokens
        if tensor is None or tensor.shape[:2] != (contexts, tokens) or tensor.ndim < 3:
            seen = "no tensor" if tensor is None else f"shape {list(tensor.shape)}"
            raise self._shape_error(point, seen, contexts, tokens)
        # A copy, since later modules may change it in place.
        activations: Tensor = tensor.flatten(2).to(self.device, torch.float32, copy=True)
        return point.as_read(activations)

    def _shape_error(self, point: HookPoint, seen: str, contexts: int, tokens: int) -> InputError:
        return InputError(
            f"model {self.name}: {point} does not give one activation per token ({seen} for {contexts} contexts of "
            f"{tokens} tokens); choose another module"
        )

    @contextmanager
    def steer(self, hookpoint: HookPoint, direction: Tensor, strength: float, first: int = 0) -> Iterator[None]:
        """Within this context, add `strength * direction` at a hookpoint in every forward pass.

        Args:
            hookpoint: The hookpoint.
            direction: The direction to add.  [width]
            strength: Its factor.
            first: First token of each forward pass to change.

        Raises:
            InputError: In the forward pass, if the hookpoint does not have one activation per token.
        """
        import torch

        push = strength * direction.to(self.device)

        def pushed(rows: Tensor) -> Tensor:
            return torch.cat([rows[:, :first], rows[:, first:] + push.to(rows)], dim=1)

        with self.changed(hookpoint, pushed):
            yield

    @contextmanager
    def changed(self, hookpoint: HookPoint, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within this context, replace the activations at a hookpoint by `change(activations)`.

        Args:
            hookpoint: The hookpoint.
            change: Maps activations [contexts, tokens, width] to an equal shape. It gets them as the model has them;
                `hookpoint.as_read` centres them for a coder.

        Raises:
            InputError: In the forward pass, if the hookpoint does not have one activation per token.
        """
        read: list[tuple[int, int]] = []

        def see(ids: Tensor) -> None:
            read[:] = [(ids.shape[0], ids.shape[1])]

        def put(tensor: Tensor) -> Tensor:
            contexts, tokens = read[0] if read else tensor.shape[:2]
            if tensor.shape[:2] != (contexts, tokens) and tensor.shape[0] != contexts * tokens:
                raise self._shape_error(hookpoint, f"shape {list(tensor.shape)}", contexts, tokens)
            return change(tensor.reshape(contexts, tokens, -1)).reshape(tensor.shape)

        # The hookpoint may flatten contexts and tokens; the embedding gets both dimensions.
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
        """Return the direct effect of directions at a hookpoint on the output of their block.

        Measured on a text as a central difference: a small step in both directions at all tokens at once, with the
        outputs of attention and MLP frozen, unless the hookpoint is inside of them.

        Args:
            point: A hookpoint in a block.
            directions: The directions.  [directions, width]
            tokens: The text.  [tokens] int64

        Returns:
            Change of the output per unit length of the step.  [directions, tokens, residual width] float32
        """
        import torch

        block = self.blocks()[self.block_of(point.path) or 0]
        inside = f"{point.path}."
        others = [
            f"{block}.{name}"
            for name, module in self._modules[block].named_children()
            if not inside.startswith(f"{block}.{name}.") and _has_weights(module)
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
        """Whether logits computed in two ways are equal up to rounding."""
        import torch

        if made.shape != expected.shape:
            return False
        made = made.to(expected.device)
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        return float((made - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def _has_weights(module: Any) -> bool:
    """Whether a part of a block has weights and is not a norm, so that its output depends on the stream."""
    return "norm" not in type(module).__name__.lower() and any(True for _ in module.parameters())
