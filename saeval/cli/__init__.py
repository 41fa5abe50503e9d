"""The command line: reads arguments, calls the library, and turns errors into exit codes.

Exit codes: 0 done; 1 done but over a limit of failures, or stopped because of repeated failures; 2 a mistake in the
command, the spec or a file that it names; 3 stopped at the cost limit (resumable); 70 internal error; 130 interrupted
(resumable).
"""

from __future__ import annotations

from saeval.cli import board, cache, catalog, exchange, plugins, reports, run
from saeval.cli.group import main

__all__ = ["main"]

_COMMANDS = (  # in the order of docs/cli.md
    run.run, run.validate, catalog.list_, catalog.show, plugins.plugins, plugins.new, catalog.schema,
    run.preview, run.plan, reports.report, reports.view, catalog.doctor, cache.cache, reports.compare,
    reports.leaderboard, reports.similarity, exchange.export, exchange.import_, exchange.push,
    exchange.pull, board.board,
)  # fmt: skip
for command in _COMMANDS:
    main.add_command(command)
