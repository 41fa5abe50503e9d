"""Builds a task spec from command-line flags, to compare your own SAEs with one command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeval._util import InputError
from saeval.plugin.base import Coder, Step
from saeval.plugin.registry import Registry

SCORERS = ("detection", "fuzzing")
BASELINES = ("shuffled_explanation", "top_tokens", "random_sae", "neurons")
_SAMPLER = {"window": 32, "explain": 10, "score": 10, "non_activating": {"n": 10}}
_MIN_WINDOWS = 20  # number of windows that the sampler above draws
_REPLY_TOKENS = {"explainer": 200, "judge": 100}


@dataclass(frozen=True)
class TaskFlags:
    """Command-line flags that describe a comparison of SAEs.

    Attributes:
        model: Subject model: hub id, folder, `.gguf` file or `package:NAME`.
        saes: Folders or hub ids; optionally as `ID=NAME`, or as `CODER:NAME` with a coder plugin.
        text: File or folder of text, or hub id of a dataset.
        judge: Language model that scores; None if no scorer uses one.
        explainer: Language model that explains, or an explainer plugin without one; None for the judge's model.
        api_base: Address of an OpenAI-compatible server for both.
        latents: Number of latents per cell.
        tokens: Maximum tokens of text.
        scorers: Scorer plugins; the first one ranks.
        hookpoint: Hookpoint in the model; None to read it from the SAEs' files.
        baselines: Explanations, explainers and coders to compare with.
        name: Name of the task; None to derive it from the model's name.
    """

    model: str
    saes: Sequence[str]
    text: str
    judge: str | None = None
    explainer: str | None = None
    api_base: str | None = None
    latents: int = 50
    tokens: int = 1_000_000
    scorers: Sequence[str] = SCORERS
    hookpoint: str | None = None
    baselines: Sequence[str] = BASELINES
    name: str | None = None


def spec_from_flags(flags: TaskFlags, registry: Registry) -> dict[str, Any]:
    """Return the spec for the flags, with absolute paths.

    Raises:
        InputError: If an SAE or the text does not exist, or a language model is missing.
    """
    explainer, llms = _models(flags, registry)
    hookpoint = {"hookpoint": flags.hookpoint} if flags.hookpoint else {}
    return {
        "saeval": 1,
        "task": flags.name or _task_name(flags.model),
        "version": "1.0",
        "description": "SAEs of your own, compared by `saeval run --model … --sae …`.",
        "llms": llms,
        "matrix": {"sae": list(_coders(flags.saes, registry))},
        "source": {
            "use": "transformers",
            "with": {
                "model": _absolute(flags.model),
                **hookpoint,
                "coder": "${matrix.sae.coder}",
                "corpus": {**_corpus(flags.text), "tokens": flags.tokens},
            },
        },
        "latents": {"n": flags.latents, "min_windows": _MIN_WINDOWS},
        "sampler": {"use": "random", "with": _SAMPLER},
        "explainer": {"use": explainer},
        "scorers": {name.rpartition("/")[2]: {"use": name} for name in flags.scorers},
        "baselines": list(flags.baselines),
    }


def _models(flags: TaskFlags, registry: Registry) -> tuple[str, dict[str, Any]]:
    """Return the explainer plugin and the language models by role."""
    use, explaining = "default", flags.explainer or flags.judge
    if flags.explainer and "/" not in flags.explainer:
        use, explaining = flags.explainer, None
        registry.get("explainer", use)  # raises an error for unknown names
    judges = [name for name in flags.scorers if _asks_judge(name, registry)]
    if use == "default" and explaining is None:
        raise InputError(
            "give --judge MODEL, such as openai/gpt-4o-mini, or an explainer without one: --explainer top_tokens"
        )
    if judges and flags.judge is None:
        raise InputError(f"{judges[0]} asks a judge: give --judge MODEL, or scorers without one: --scorers embedding")
    models = {"explainer": explaining, "judge": flags.judge if judges else None}
    return use, {role: _role(role, model, flags.api_base) for role, model in models.items() if model}


def _asks_judge(scorer: str, registry: Registry) -> bool:
    """Return whether a scorer asks the judge; the models of other roles have no flag."""
    cls = registry.get("scorer", scorer).cls
    return issubclass(cls, Step) and cls.llm_role == "judge"


def _role(role: str, model: str, api_base: str | None) -> dict[str, Any]:
    address = {"api_base": api_base} if api_base else {}
    return {"model": model, "max_tokens": _REPLY_TOKENS[role], **address}


def _coders(names: Sequence[str], registry: Registry) -> Iterator[dict[str, Any]]:
    """Yield an axis value per SAE; ids are the shortest distinct ends of their paths."""
    given = [_split_id(name) for name in names]
    ids = _short_ids([named or reference for named, reference in given])
    for (named, reference), short in zip(given, ids, strict=True):
        yield {"id": named or short, "coder": _coder(reference, registry)}


def _split_id(name: str) -> tuple[str | None, str]:
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", name)
    return (found[1], found[2]) if found else (None, name)


def _short_ids(references: Sequence[str]) -> list[str]:
    """Return the shortest distinct ends of paths, as ids."""
    parts = [
        [part for part in re.split(r"[/\\:]+", reference) if part not in ("", ".", "..", "~")]
        for reference in references
    ]
    longest = max(map(len, parts), default=1)
    for n in range(1, longest + 1):
        ids = ["-".join(part[-n:]) or "sae" for part in parts]
        if len(set(ids)) == len(ids):
            break
    return [re.sub(r"[^A-Za-z0-9._-]", "-", name) for name in ids]


def _coder(reference: str, registry: Registry) -> dict[str, Any]:
    """Return the coder plugin that can read an SAE, with its options.

    Raises:
        InputError: If no plugin or several plugins can read it.
    """
    prefix, colon, rest = reference.partition(":")
    named = re.fullmatch(r"[a-z][\w-]*(/\w+)?", prefix) if colon else None  # C:\\saes is a folder
    if named:
        candidates, reference = [registry.get("coder", prefix)], rest
    else:
        candidates = registry.built_in("coder")
    found = {}
    for candidate in candidates:
        options = candidate.cls.by_name(reference) if issubclass(candidate.cls, Coder) else None
        if options is not None:
            found[candidate.id.removeprefix("saeval/")] = options
    if len(found) == 1:
        ((use, options),) = found.items()
        return {"use": use, "with": dict(options)}
    if found:
        raise InputError(
            f"--sae {reference}: {' and '.join(found)} can read it; choose one, such as "
            f"--sae {next(iter(found))}:{reference}"
        )
    raise InputError(f"--sae {reference}: {_unread(reference)}")


def _unread(reference: str) -> str:
    folder = Path(reference).expanduser()
    if folder.is_dir():
        inside = sorted(child.name for child in folder.iterdir())
        there = ", ".join(inside[:5]) + (" …" if len(inside) > 5 else "") or "nothing"
        return f"no coder plugin can read this folder, which contains {there}; give the folder with the weights"
    if folder.exists():
        return f"is a file; give its folder, {folder.parent}"
    return (
        "no such folder, and not a hub id that a coder plugin knows; give RELEASE/ID of sae-lens (which must be "
        "installed), or CODER:OWNER/REPOSITORY/FOLDER"
    )


def _corpus(text: str) -> dict[str, str]:
    """Return the corpus option for a file, a folder or a hub id.

    Raises:
        InputError: If it is none of them.
    """
    if Path(text).expanduser().exists():
        return {"path": _absolute(text)}
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+", text)
        and not text.startswith(".")
        and Path(text).suffix not in (".txt", ".jsonl", ".parquet")
    ):
        return {"dataset": text}
    raise InputError(f"--text {text}: no such file or folder; give one, or the hub id of a dataset")


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _task_name(model: str) -> str:
    """Return a name for the task: the model's name, valid as a folder name."""
    last = re.split(r"[/\\:]+", model.rstrip("/\\"))[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]", "-", last).strip("-._")[:60] or "saes"
