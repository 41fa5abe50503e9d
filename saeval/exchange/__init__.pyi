from saeval.exchange.board import add_runs as add_runs, build as build
from saeval.exchange.cards import read_spec as read_spec
from saeval.exchange.formats import (
    EXPORTS as EXPORTS,
    FORMATS as FORMATS,
    export_run as export_run,
    import_run as import_run,
)
from saeval.exchange.hub import pull as pull, push as push
