"""Splits the data of a large cell's page into parts that the page loads when they are needed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from saeval.report.html.text import packed_json

LARGE = 20_000
"""Number of latents from which a page is split into parts; smaller pages contain all their data, up to 2.4 MB."""
PER_FOLDER = 256
"""Maximum files of latents per folder."""
_ROWS = 500  # lines of the list per file
_POSTINGS = 100_000  # approximate number of word positions per file
_COLUMNS = ("density", "firings", "windows", "max_activation", "histogram_top", "latent", "gap", "text", "why")
_OF_SCORERS = ("values", "lows", "highs")
_SORTED = ("latent", "gap", "density")


def in_parts(data: dict[str, Any]) -> tuple[dict[str, Any], Iterator[tuple[str, str]]]:
    """Return the data that stays in the page, and its parts: name below the page's folder, and script.

    The parts are the lines of the list, 500 per part; whole columns, for sorting; and an index of the words of
    explanations.
    """
    n = len(data["latent"])
    columns = {name: data[name] for name in _COLUMNS}
    for k, scorer in enumerate(data["scorers"]):
        columns |= {f"{name}.{k}": scorer[name] for name in _OF_SCORERS}
    scorers = [scorer | {name: [] for name in _OF_SCORERS} for scorer in data["scorers"]]
    empty: dict[str, Any] = {name: [] for name in _COLUMNS}
    small = data | empty | {"scorers": scorers, "paged": {"count": n, "rows": _ROWS}}

    def parts() -> Iterator[tuple[str, str]]:
        for k, begin in enumerate(range(0, n, _ROWS)):
            rows = {name: column[begin : begin + _ROWS] for name, column in columns.items()}
            yield _part(data["folder"], f"rows/{k // PER_FOLDER}/{k}", rows)
        for name in (*_SORTED, *(f"values.{k}" for k in range(len(scorers)))):
            yield _part(data["folder"], f"column/{name}", columns[name])
        yield _part(data["folder"], "column/text", _ranks(data["text"]))
        yield from _index(data["folder"], data["text"])

    return small, parts()


def _part(folder: str, name: str, content: Any) -> tuple[str, str]:
    return name, f'saevalPart("{folder}/{name}","{packed_json(content)}");\n'


def _ranks(texts: Sequence[str]) -> list[int | None]:
    """Return each text's rank in alphabetical order; None for empty texts."""
    names = {text: k for k, text in enumerate(sorted({*texts}, key=lambda text: (text.casefold(), text)))}
    return [names[text] if text else None for text in texts]


def _index(folder: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the positions of each word, as differences from the previous one, and the list of words."""
    places: dict[str, array[int]] = {}
    for place, text in enumerate(texts):
        for word in {*text.lower().split()}:
            places.setdefault(word, array("I")).append(place)
    words = sorted(places)
    begins, held, steps = [0], 0, []
    for k, word in enumerate(words):
        found = places[word]
        steps.append([b - a for a, b in zip([0, *found[:-1]], found, strict=True)])
        held += len(found)
        if held >= _POSTINGS or k == len(words) - 1:
            yield _part(folder, f"index/{len(begins) - 1}", steps)
            begins.append(k + 1)
            held, steps = 0, []
    yield _part(folder, "words", {"count": len(texts), "words": words, "begins": begins, "rows": _ROWS})
