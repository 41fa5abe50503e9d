"""Another user of the machine, whom root can act as."""

from __future__ import annotations

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
