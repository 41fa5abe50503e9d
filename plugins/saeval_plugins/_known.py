"""Defines latents of exactly known meaning, with true explanations and known corruptions of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

CATEGORIES = {
    "animals": """otter falcon rabbit camel badger heron lizard walrus ferret pigeon
        salmon turtle donkey beetle panther moose raven hornet weasel gopher""",
    "tools": """hammer chisel pliers shovel wrench sickle mallet trowel crowbar hatchet
        scythe anvil drill rasp spanner hoe awl clamp jigsaw lathe""",
    "fruits": """apple cherry lemon papaya mango apricot quince fig melon lychee
        guava peach kiwi plum grape pear currant raisin tangerine pomegranate""",
    "musical instruments": """violin trumpet cello flute banjo oboe tuba harp bassoon mandolin
        clarinet piano bugle lute zither accordion marimba piccolo ukulele trombone""",
    "clothes": """jacket scarf mitten blouse trousers sandal bonnet apron waistcoat sweater
        slipper cardigan stocking tunic kimono poncho turban overcoat blazer corset""",
}
"""Words that latents fire on, by category; each latent has two of them, in this order."""
COMPANIONS = tuple(
    """
    amber bashful brittle broken calm careless chilly clumsy crimson crooked curious damp distant drowsy dusty eager
    elegant faded fierce foggy fragile gentle gloomy graceful hasty hollow humble idle jagged jolly lazy lively lofty
    mellow muddy narrow noisy pale patient polished proud quaint restless rusty shallow shiny sleepy solemn stale
    stubborn
    """.split()  # noqa: SIM905
)
"""One word per latent, which occurs only in windows in which this latent fires."""
FILLER = tuple(
    """
    the a of and to in it was with for on that at by from his her they were he she as had but not be or which one all
    there some out up then when so over new little great long still under again before after two every through down
    away made came went saw said took gave found left turned looked walked waited once only near very while
    """.split()  # noqa: SIM905
)
"""Words of all other text."""

_WORDS = [word for words in CATEGORIES.values() for word in words.split()]
_EACH, _PER_CATEGORY = 2, 10  # words per latent, latents per category
N_LATENTS = len(_WORDS) // _EACH


@dataclass(frozen=True)
class Meaning:
    """The exact meaning of an explanation: any of these words, or none of them.

    Attributes:
        words: The words.
        negated: Whether texts without the words match, instead of those with them.
    """

    words: frozenset[str]
    negated: bool = False

    def fits(self, text: str) -> bool:
        """Return whether a text matches."""
        return bool(self.words & set(re.findall(r"\w+", text))) is not self.negated


def words_of(latent: int) -> list[str]:
    """Return the words on which a latent fires."""
    return _WORDS[_EACH * latent : _EACH * (latent + 1)]


def neighbour_of(latent: int) -> int:
    """Return the next latent of the same category, whose words often occur in the same windows."""
    first = latent - latent % _PER_CATEGORY
    return first + (latent - first + 1) % _PER_CATEGORY


def _category(latent: int, away: int = 0) -> str:
    names = list(CATEGORIES)
    return names[(latent // _PER_CATEGORY + away) % len(names)]


def _listed(words: Iterable[str]) -> str:
    *first, last = (f"'{word}'" for word in words)
    return f"{', '.join(first)} and {last}"


def explanations(latent: int) -> dict[str, tuple[str, Meaning]]:
    """Return the true explanation of a latent (`known`) and the corrupted ones by name, each with its exact meaning."""
    own, near = words_of(latent), words_of(neighbour_of(latent))
    broad, other = CATEGORIES[_category(latent)].split(), CATEGORIES[_category(latent, 1)].split()
    companion = COMPANIONS[latent]
    found = {
        "known": (f"the words {_listed(own)}", own),
        "twice_too_broad": (f"the words {_listed(own + near)}", own + near),
        "ten_times_too_broad": (f"names of {_category(latent)}", broad),
        "half_missing": (f"the word '{own[0]}'", own[:1]),
        "wrong_token": (f"the word '{companion}'", [companion]),
        "neighbour": (f"the words {_listed(near)}", near),
        "hedged": (f"the words {_listed(own)}, or perhaps names of {_category(latent, 1)}", own + other),
        "paraphrased": (f"mentions of either '{own[1]}' or '{own[0]}'", own),
    }
    plain = {name: (text, Meaning(frozenset(words))) for name, (text, words) in found.items()}
    return {**plain, "negated": (f"text without the words {_listed(own)}", Meaning(frozenset(own), negated=True))}


@cache
def meanings() -> dict[str, Meaning]:
    """Return the exact meaning of every explanation of every latent, by its text."""
    return dict(pair for latent in range(N_LATENTS) for pair in explanations(latent).values())
