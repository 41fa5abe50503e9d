"""Reads the releases of pretrained SAEs that the installed sae-lens lists, without importing it."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from saeval.plugin import InputError

_LIST = "pretrained_saes.yaml"
_LOADERS = "loading/pretrained_sae_loaders.py"


class Listed(NamedTuple):
    """Facts about one SAE from sae-lens' list.

    Attributes:
        model: The model that the SAE was trained on.
        l0: Mean number of latents that fire per token, if listed.
        context_size: Tokens per context, if stated in the list or in sae-lens' converter for the SAE's file format.
    """

    model: str | None
    l0: float | None
    context_size: int | None = None


def listed(release: str, sae_id: str) -> Listed:
    """Look up an SAE of a release.

    Raises:
        InputError: If sae-lens is not installed, or does not list the release or the SAE; suggests a listed one.
    """
    entry = _entry(release, _text())
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if sae_id not in saes:
        close = difflib.get_close_matches(sae_id, saes, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join([*saes][:3])} …"
        raise InputError(f"the release has {len(saes)} SAEs, but no {sae_id!r}; {hint}")
    l0 = saes[sae_id].get("l0")
    size = {**(entry.get("config_overrides") or {}), **(saes[sae_id].get("config_overrides") or {})}.get("context_size")
    size = size or _converted_context(entry.get("conversion_func"))
    return Listed(entry.get("model"), float(l0) if isinstance(l0, int | float) and l0 > 0 else None, size)


@lru_cache(maxsize=64)  # tasks look up many SAEs of a release, and its entry can be long
def _entry(release: str, text: str) -> dict[str, Any]:
    import yaml

    begin = re.search(rf"^[\"']?{re.escape(release)}[\"']?:\s*$", text, re.MULTILINE)
    if begin is None:
        raise InputError(_no_release(release, text))
    rest = text[begin.end() :]
    end = re.search(r"^\S", rest, re.MULTILINE)
    return dict(yaml.safe_load(rest[: end.start()] if end else rest))


def releases() -> frozenset[str]:
    """Return the names of all releases; none if sae-lens is not installed."""
    try:
        return frozenset(_names(_text()))
    except InputError:
        return frozenset()


def _names(text: str) -> list[str]:
    return [name.strip("\"'") for name in re.findall(r"^([^\s#][^:]*):\s*$", text, re.MULTILINE)]


def _no_release(release: str, text: str) -> str:
    names = _names(text)
    of_repo = re.search(rf"^  repo_id: {re.escape(release)}\s*$", text, re.MULTILINE)
    if of_repo is not None:
        own = re.findall(r"^([^\s#][^:]*):\s*$", text[: of_repo.start()], re.MULTILINE)[-1]
        return f"that is a repository, which sae-lens lists as the release {own!r}; write `release: {own}`"
    if "/" in release:
        return "that is not a release of the installed sae-lens; for a repository on the hub, set `repo` and `folder`"
    close = difflib.get_close_matches(release, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "check the name, or upgrade sae-lens"
    return f"the installed sae-lens lists {len(names)} releases, but none with that name; {hint}"


@lru_cache(maxsize=16)
def _converted_context(conversion: str | None) -> int | None:
    """Return the context size that sae-lens writes into each configuration converted from another library."""
    if not conversion or not (file := _package() / _LOADERS).is_file():
        return None
    _, _, rest = file.read_text(encoding="utf-8").partition(f"def get_{conversion}_config_from_hf(")
    written = re.search(r'^\s+"context_size": (\d+),$', rest.partition("\ndef ")[0], re.MULTILINE)
    return int(written[1]) if written else None


@lru_cache(maxsize=1)
def _text() -> str:
    return (_package() / _LIST).read_text(encoding="utf-8")


def _package() -> Path:
    spec = find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise InputError("`release` requires the package sae-lens: pip install sae-lens")
    return Path(spec.origin).parent
