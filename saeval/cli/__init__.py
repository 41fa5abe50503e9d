"""The command line: reads arguments, calls the library, and turns errors into exit codes.

Exit codes: 0 done; 1 done but over a threshold, or gave up; 2 a mistake in the command, the spec or a file that it
names; 3 stopped at the cost limit (resumable); 70 internal error; 130 interrupted (resumable).
"""

from __future__ import annotations

from saeval.cli import caching, exchanging, extending, looking, reporting, running
from saeval.cli.group import main

__all__ = ["main"]

_COMMANDS = (  # in the order of docs/cli.md
    running.run, running.validate, looking.list_, looking.show, extending.plugins, extending.new, looking.schema,
    running.preview, running.plan, reporting.report, reporting.view, looking.doctor, caching.cache, reporting.compare,
    reporting.leaderboard, reporting.similarity, exchanging.export, exchanging.import_, exchanging.push,
    exchanging.pull,
)  # fmt: skip
for command in _COMMANDS:
    main.add_command(command)
