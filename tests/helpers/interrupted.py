"""Interrupts a model's pass over a corpus, as Ctrl-C does."""

from __future__ import annotations

from saeval.plugin import LiveModel


def interrupted_after(n):
    """A `LiveModel.capture` that is interrupted after n calls."""
    capture, calls = LiveModel.capture, []

    def failing(*given, **named):
        calls.append(given)
        if len(calls) > n:
            raise KeyboardInterrupt
        return capture(*given, **named)

    return failing
