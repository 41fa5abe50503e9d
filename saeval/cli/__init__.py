"""The command line: a thin layer that reads arguments, calls the library, and turns errors into exit codes.

Exit codes: 0 done; 1 done, but over `max_failed`, or the run gave up; 2 a mistake in the command, the spec or what
it names; 3 stopped at the cost limit (resumable); 70 something that nobody foresaw; 130 interrupted (resumable).
"""

from __future__ import annotations

from saeval.cli import caching, exchanging, extending, looking, reporting, running
from saeval.cli.group import main

__all__ = ["main"]

for command in (  # in the order in which docs/cli.md tells of them
    running.run, running.validate, looking.list_, looking.show, extending.plugins, extending.new, looking.schema,
    running.preview, running.plan, reporting.report, reporting.view, looking.doctor, caching.cache, reporting.compare,
    reporting.leaderboard, reporting.similarity, exchanging.export, exchanging.import_, exchanging.push, exchanging.pull,
):  # fmt: skip
    main.add_command(command)
