"""Calls functions on the inputs and outputs of a model's modules."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from saeval.models.coders import HookPoint


class Enough(BaseException):
    """Ends a forward pass once all requested activations are captured; `except Exception` does not catch it."""


@contextmanager
def hooked(places: Any) -> Iterator[None]:
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


def reader(point: HookPoint, catch: Callable[[HookPoint, Any], None]) -> Callable[[Any], None]:
    """Return a function for `hooked` that tells `catch` where a value was seen."""
    return lambda value: catch(point, value)


def first_tensor(value: Any) -> Any:
    """Return the hidden states in what a module is given or gives: a tensor, or the first thing in a tuple."""
    import torch

    while isinstance(value, tuple | list) and value:
        value = value[0]
    value = getattr(value, "last_hidden_state", value)
    return value if torch.is_tensor(value) else None


def keep(seen: dict[str, Any], label: str, value: Any) -> None:
    """Keep a copy of a module's input or output at that moment."""
    tensor = first_tensor(value)
    seen[label] = None if tensor is None else tensor.clone()


def replace_first(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return what a module gives with its hidden states changed."""
    if isinstance(value, tuple | list):
        changed = [replace_first(value[0], change), *value[1:]]
        return tuple(changed) if isinstance(value, tuple) else changed
    return change(value)
