"""Ctrl-C stops a command, whatever Python is doing when it is pressed."""

from __future__ import annotations

import subprocess
import sys

IN_A_CALLBACK = """
import signal, time, weakref
from saeval.cli.signals import stop_as_on_ctrl_c

# SIGINT is ignored where tests run in a background shell, and blocked after a command in their process.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
stop_as_on_ctrl_c()
class Thing: pass
thing = Thing()
callback = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
del thing
try:
    time.sleep(20)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_counts_in_the_callback_of_a_weak_reference():
    child = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], capture_output=True, text=True, timeout=15)
    assert (child.stdout, child.stderr, child.returncode) == ("stopped\n", "", 0)
