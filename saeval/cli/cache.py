"""Commands that list, export and clear cached answers of language models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from saeval.cli.shared import JSON, print_json, print_rows, say

if TYPE_CHECKING:
    from saeval.llm import AnswerCache, CallLedger

_MODEL = click.option("--model", metavar="NAME", help="Only this model's answers, by its name in specs.")
_STATUS = click.option("--status", type=click.Choice(["ok", "unreadable"]), help="Only answers with this status.")
_RUN = click.option("--run", "run_dir", type=click.Path(path_type=Path), help="Only answers that this run used.")


@click.group()
def cache() -> None:
    """List, export and clear cached answers of language models."""


@cache.command("list")
@_RUN
@JSON
def list_(run_dir: Path | None, as_json: bool) -> None:
    """List the number of cached answers by model and status."""
    with _store() as store:
        kept = store.listed(None if run_dir is None else _keys_of(run_dir))
    if as_json:
        print_json([row._asdict() for row in kept])
        return
    head = {"model": "model", "status": "status", "answers": "answers", "MB": "MB"}
    rows = [
        {
            "model": row.model or "unknown",
            "status": row.status,
            "answers": f"{row.answers:,}",
            "MB": f"{row.bytes / 1e6:.1f}",
        }
        for row in kept
    ]
    print_rows([head, *rows] if rows else [])


@cache.command()
@_MODEL
@_STATUS
@_RUN
@click.option("--all", "everything", is_flag=True, help="All answers.")
def clear(model: str | None, status: str | None, run_dir: Path | None, everything: bool) -> None:
    """Delete cached answers of a model, a status or a run, so that later runs ask again."""
    from saeval._util import counted

    if not (model or status or run_dir or everything):
        raise click.UsageError("choose the answers to delete with --model, --status, --run or --all")
    with _store() as store:
        keys = store.find(model, status)
        if run_dir is not None:
            keys &= _keys_of(run_dir)
        deleted = store.clear(keys)
    say(f"{counted(deleted, 'answer')} deleted")


@cache.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to create.")
def export(run_dir: Path, out: Path) -> None:
    """Write the answers that a run used, and a spec that replays them: it asks no model, and needs no key."""
    import yaml

    from saeval._util import InputError, counted, file_name, new_folder
    from saeval.exchange import read_spec
    from saeval.llm import RoleSettings, export_replies

    ledgers, spec, written = _ledgers(run_dir), read_spec(run_dir / "spec.yaml"), 0
    llms = spec.get("llms", {}) if isinstance(spec, dict) else None
    if not isinstance(llms, dict) or not all(isinstance(options, dict) for options in llms.values()):
        raise InputError(f"{run_dir / 'spec.yaml'}: is missing or damaged, so the answers cannot be replayed")
    with _store() as store, new_folder(out) as folder:
        for role, options in llms.items():
            name = f"{file_name(role)}.jsonl"
            if answers := export_replies(ledgers, store, role, folder / name):
                written += answers
                settings = {key: value for key, value in options.items() if key in RoleSettings.model_fields}
                llms[role] = {"model": f"replay/./{name}", **settings}
            else:
                say(f"{role}: has no replies to export, so its model stays in the spec", err=True)
        if not written:
            raise InputError(f"{run_dir}: the cache has no answers of this run, so there is nothing to export")
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), encoding="utf-8")
    say(f"written   {out}  ({counted(written, 'answer')})\nreplay    saeval run {out / 'spec.yaml'}")


def _store() -> AnswerCache:
    from saeval._util import cache_dir
    from saeval.llm import AnswerCache

    return AnswerCache(cache_dir() / "calls.sqlite")


def _keys_of(run_dir: Path) -> set[str]:
    """Return the keys of the answers in a run's ledger, or in those of its seeds."""
    return {call.answer for ledger in _ledgers(run_dir) for call in ledger.calls() if call.answer}


def _ledgers(run_dir: Path) -> list[CallLedger]:
    """Return a run's ledger, or those of its seeds.

    Raises:
        InputError: If there is none.
    """
    from saeval._util import InputError
    from saeval.llm import ledgers_in
    from saeval.results import refuse_without_calls

    ledgers = ledgers_in(run_dir)
    if not ledgers:
        refuse_without_calls(run_dir)
        raise InputError(f"{run_dir}: has no calls.jsonl; give a run directory")
    return ledgers
