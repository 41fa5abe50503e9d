"""Calls functions on the inputs and outputs of a model's modules."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from saeval.models.coders import HookPoint


class StopForward(BaseException):
    """Ends a forward pass once all requested activations are captured; `except Exception` does not catch it."""


@contextmanager
def hooked(places: Any) -> Iterator[None]:
    """Within this context, call functions on the outputs or first inputs of modules.

    Args:
        places: Tuples (module, site, function); the function's result replaces the value, unless it is None.
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
    """Return a function for `hooked` that calls `catch` with the hookpoint and the value."""
    return lambda value: catch(point, value)


def first_tensor(value: Any) -> Any:
    """Return the hidden states in a module's input or output: the tensor itself, or the first item of a tuple."""
    import torch

    while isinstance(value, tuple | list) and value:
        value = value[0]
    value = getattr(value, "last_hidden_state", value)
    return value if torch.is_tensor(value) else None


def keep(seen: dict[str, Any], label: str, value: Any) -> None:
    """Store a copy of a module's input or output in `seen`."""
    tensor = first_tensor(value)
    seen[label] = None if tensor is None else tensor.clone()


def replace_first(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a module's input or output with changed hidden states."""
    if isinstance(value, tuple | list):
        changed = [replace_first(value[0], change), *value[1:]]
        return tuple(changed) if isinstance(value, tuple) else changed
    return change(value)
