"""The command `saeval` in a process of its own, as users run it."""

from __future__ import annotations

import os
import subprocess
import sys


def run_command(*arguments, cwd=None, code=0, env=None, **options):
    """Run it to its end and return what it printed; it ends with the given code (None: any) and without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "saeval", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done
