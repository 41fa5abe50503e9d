"""Checks, before a plugin is used, that the methods of its class can be called as saeval calls them."""

from __future__ import annotations

import inspect
from functools import cache
from types import FunctionType
from typing import NamedTuple

_ASYNC = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


class _Called(NamedTuple):
    """A method of an interface, and how saeval calls it: positionally, and keyword-only parameters by name."""

    name: str
    function: FunctionType
    positional: tuple[str, ...]
    keywords: tuple[str, ...]

    @property
    def definition(self) -> str:
        """The first line of its definition, without annotations."""
        word = "async def" if inspect.iscoroutinefunction(self.function) else "def"
        named = ", ".join((*self.positional, *(["*"] if self.keywords else []), *self.keywords))
        return f"{word} {self.name}({named})"


def unfit_method(cls: type, base: type) -> str | None:
    """Return what is wrong with a method of a plugin class, and what to write; None if nothing is for certain.

    Args:
        cls: The class.
        base: The interface of its kind.
    """
    for called in _interface(base):
        member = getattr(cls, called.name)
        if getattr(member, "__func__", member) is called.function:
            continue  # not overridden
        own = inspect.getattr_static(cls, called.name)
        if not _accepts(own, called):
            return f"`{called.name}` cannot be called with the arguments it gets; write `{called.definition}`"
        if inspect.iscoroutinefunction(called.function) and _is_sync(own):
            return f"`{called.name}` is not async, but its result is awaited; write `{called.definition}`"
    return None


@cache
def _interface(base: type) -> list[_Called]:
    """Return the methods of an interface, without pydantic's."""
    found: dict[str, _Called] = {}
    for above in base.__mro__:
        if not above.__module__.startswith("saeval."):
            continue
        for name, member in vars(above).items():
            function = getattr(member, "__func__", member)
            if isinstance(function, FunctionType) and not name.startswith(("_", "model_")):
                parameters = inspect.signature(function).parameters.values()
                keywords = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
                positional = tuple(p.name for p in parameters if p.name not in keywords)
                found.setdefault(name, _Called(name, function, positional, keywords))
    return list(found.values())


def _accepts(own: object, called: _Called) -> bool:
    """Return whether a member of a class accepts the arguments; true if that is unknown."""
    function = getattr(own, "__func__", own)
    # The call goes to a decorator's wrapper, whatever `__wrapped__` or `__signature__` say of the function inside.
    if not isinstance(function, FunctionType) or hasattr(function, "__signature__"):
        return True
    arguments = called.positional[1:] if isinstance(own, staticmethod) else called.positional
    code = function.__code__
    if code.co_argcount == len(arguments) and not (code.co_kwonlyargcount or called.keywords):
        return True  # nearly all methods, without the time that `inspect.signature` takes
    try:
        inspect.signature(function, follow_wrapped=False).bind(*arguments, **dict.fromkeys(called.keywords))
    except TypeError:
        return False
    return True


def _is_sync(own: object) -> bool:
    """Return whether a member of a class is a plain function; false for a decorator's, which may return a coroutine."""
    return isinstance(own, FunctionType) and not own.__code__.co_flags & _ASYNC and not hasattr(own, "__wrapped__")
