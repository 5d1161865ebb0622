"""How facts are put into words: templates, of which each text chooses its own alternatives."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random

import yaml

from genrec_builders.knowledge.facts import Facts
from genrec_builders.knowledge.hashing import text_number

_HABIT = (0.6, 0.45)  # of the choices follow the entity's habits, in the standard and in the harder set
_LEAST = 4  # sentences that are tried
_SWAPPED = 0.3  # of the texts have two neighbouring sentences in the other order
_SLOT = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Sentence:
    """What one sentence of a text may be. share, harder_share: of the texts that have it, in the two sets."""

    share: float
    harder_share: float
    templates: tuple[str, ...]


_TABLES = yaml.safe_load(resources.files("genrec_builders.knowledge").joinpath("wording.yaml").read_text("utf-8"))
DEPARTMENTS: dict[str, dict[str, str]] = _TABLES["departments"]
WORDS: dict[str, str] = _TABLES["words"]
USER, ITEM = (
    [Sentence(**(entry | {"templates": tuple(entry["templates"])})) for entry in _TABLES[kind]]
    for kind in ("user", "item")
)


def write(sentences: Sequence[Sentence], facts: Facts, seed: str, harder: bool) -> str:
    """A text that says `facts` in some of `sentences`, `USER` or `ITEM`; the same for the same seed."""
    rng = Random(seed)
    wording = _Wording(facts, rng, harder)
    shares = [sentence.harder_share if harder else sentence.share for sentence in sentences]
    # Below 1 with the probability `share`; where that gives too few sentences, the likeliest others join.
    draws = [rng.random() / share if share else math.inf for share in shares]
    bar = max(1.0, sorted(draws)[_LEAST - 1])
    chosen = (sentence for draw, sentence in zip(draws, sentences, strict=True) if draw <= bar)
    written = [text for sentence in chosen if (text := wording.sentence(sentence.templates))]
    if rng.random() < _SWAPPED and len(written) > 3:
        at = rng.randrange(1, len(written) - 2)
        written[at], written[at + 1] = written[at + 1], written[at]
    return " ".join(written)


class _Wording:
    """Chooses among the alternatives for one text."""

    def __init__(self, facts: Facts, rng: Random, harder: bool) -> None:
        # In the harder set, habits also depend on finer things, such as the brand.
        self._habits = facts.habits if harder else facts.habits[:-1]
        self._rng, self._harder = rng, harder
        department, tier = DEPARTMENTS[facts.known["department"]], _TABLES["tiers"][int(facts.habits[1])]
        self._known = facts.known | {name: self.choose(department[name]) for name in ("activity", "place", "virtue")}
        self._known["virtue2"] = self.choose(department["virtue"], self._known["virtue"])
        self._known |= {name: self.choose(tier[name]) for name in ("tier", "worth")}

    def sentence(self, templates: tuple[str, ...]) -> str:
        """A sentence from one of `templates`, or "" if each needs an unknown fact."""
        known = frozenset(self._known)
        usable = _usable(templates, known, self._harder)
        if not usable:
            return ""
        filled = _SLOT.sub(lambda slot: self._pick(_alternatives(slot[1], known, self._harder)), self._pick(usable))
        text = _FIELD.sub(lambda field: self._known.get(field[1]) or self.choose(WORDS[field[1]]), filled)
        return _ARTICLE.sub(r"\1n ", text[0].upper() + text[1:])

    def choose(self, words: str, taken: str = "") -> str:
        """One of `words`, not `taken`."""
        return self._pick([word for word in _alternatives(words, frozenset(), self._harder) if word != taken])

    def _pick(self, alternatives: Sequence[str]) -> str:
        if self._rng.random() >= _HABIT[self._harder]:
            return self._rng.choice(alternatives)
        key = "|".join(alternatives)
        habit = self._habits[text_number(key) % len(self._habits)]
        return alternatives[text_number(f"{key}/{habit}") % len(alternatives)]


@cache
def _alternatives(slot: str, known: frozenset[str], harder: bool) -> list[str]:
    """Those of a set of texts, without what needs a fact that is not known."""
    usual, _, more = slot.partition("||")
    return [text for text in usual.split("|") + (more.split("|") if more and harder else []) if _needs(text) <= known]


@cache
def _usable(templates: tuple[str, ...], known: frozenset[str], harder: bool) -> list[str]:
    return [
        template
        for template in templates
        if _needs(_SLOT.sub("", template)) <= known
        and all(_alternatives(slot, known, harder) for slot in _SLOT.findall(template))
    ]


def _needs(text: str) -> set[str]:
    """The facts that `text` names."""
    return set(_FIELD.findall(text)) - WORDS.keys()
