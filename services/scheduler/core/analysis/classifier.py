"""The type of a task from its text, with a confidence, or "unknown".

A multinomial naive Bayes classifier (McCallum and Nigam, AAAI workshop 1998) over words, pieces of words and,
for Chinese, characters and their pairs. Its posterior is far too sure of itself, since the features of a text
are not independent; it is therefore tempered: log likelihoods are divided by the square root of the number of
features. A text whose features nobody has seen, or whose best type is not likely enough, is unknown: a wrong
type is worse than none.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

#: Types and texts per type that are kept; the oldest text of a type goes first, the oldest type likewise.
TYPES_MAX = 128
TEXTS_PER_TYPE_MAX = 16
#: Of a text only its beginning is looked at: the cost of one answer is bounded.
TEXT_CHARACTERS_MAX = 160
#: The best type must be at least so likely, and so large a share of the features known.
CONFIDENCE_MIN = 0.5
KNOWN_SHARE_MIN = 0.25
#: What an unseen feature counts in a type.
_SMOOTHING = 0.15
_WORD = re.compile(r"[a-z0-9]+|[\u3400-\u9fff]+")
_STOP = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "the", "to", "with")
)


class Classified(NamedTuple):
    """A type that a text seems to have."""

    #: Empty: unknown.
    task_type: str
    #: Probability that `task_type` is right; for unknown ones, of the best guess.
    confidence: float
    #: The next likely type, for people.
    runner_up: str = ""


UNKNOWN = Classified("", 0.0)


def features(text: str) -> list[str]:
    """Return the features of a text: words and the beginnings of long ones; Chinese characters and pairs."""
    found: list[str] = []
    for word in _WORD.findall(text[:TEXT_CHARACTERS_MAX].lower()):
        if word[0] > "\u3000":
            found += word
            found += (word[start : start + 2] for start in range(len(word) - 1))
        elif word not in _STOP:
            found.append(word)
            if len(word) > 4:
                found.append(f"{word[:5]}-")
    return found


class Classifier:
    """Types with their texts; learns one text at a time. Deterministic and bounded."""

    def __init__(self, texts: Mapping[str, Iterable[str]] | None = None) -> None:
        self._texts: dict[str, deque[str]] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._totals: dict[str, int] = {}
        #: In how many types' texts a feature is.
        self._vocabulary: Counter[str] = Counter()
        for task_type, rows in (texts or {}).items():
            for text in rows:
                self.learn(task_type, text)

    @property
    def types(self) -> tuple[str, ...]:
        """The types that it knows."""
        return tuple(self._texts)

    def texts(self, task_type: str) -> tuple[str, ...]:
        """Return the texts that speak for a type, oldest first."""
        return tuple(self._texts.get(task_type, ()))

    def learn(self, task_type: str, text: str) -> bool:
        """Take in the text of a task whose type is known; return whether anything was new in it."""
        text = text[:TEXT_CHARACTERS_MAX].strip()
        rows = self._texts.get(task_type)
        if not text or (rows is not None and text in rows):
            return False
        if rows is None:
            if len(self._texts) >= TYPES_MAX:
                self._forget(next(iter(self._texts)))
            rows = self._texts[task_type] = deque()
            self._counts[task_type] = Counter()
            self._totals[task_type] = 0
        if len(rows) >= TEXTS_PER_TYPE_MAX:
            self._count(task_type, rows.popleft(), -1)
        rows.append(text)
        self._count(task_type, text, 1)
        return True

    def classify(self, text: str) -> Classified:
        """Return the likeliest type of a text, or unknown."""
        found = features(text)
        known = [feature for feature in found if self._vocabulary[feature] > 0]
        if len(self._texts) < 2 or not known or len(known) < KNOWN_SHARE_MIN * len(found):
            return UNKNOWN
        size = len(self._vocabulary)
        scores = []
        for task_type, counts in self._counts.items():
            base = math.log(self._totals[task_type] + _SMOOTHING * size)
            score = sum(math.log(counts[feature] + _SMOOTHING) for feature in known) - base * len(known)
            scores.append((score / math.sqrt(len(known)), task_type))
        scores.sort(reverse=True)
        best = scores[0][0]
        total = sum(math.exp(score - best) for score, _ in scores)
        confidence = 1.0 / total
        task_type = scores[0][1] if confidence >= CONFIDENCE_MIN else ""
        return Classified(task_type, confidence, scores[1][1])

    def _forget(self, task_type: str) -> None:
        for text in self._texts.pop(task_type):
            self._vocabulary.subtract(set(features(text)))
        del self._counts[task_type], self._totals[task_type]
        self._vocabulary += Counter()

    def _count(self, task_type: str, text: str, sign: int) -> None:
        found = features(text)
        counts = self._counts[task_type]
        for feature in found:
            counts[feature] += sign
        for feature in set(found):
            self._vocabulary[feature] += sign
            if not self._vocabulary[feature]:
                del self._vocabulary[feature]
        self._totals[task_type] += sign * len(found)
