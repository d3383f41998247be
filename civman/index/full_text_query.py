"""Turn what a user typed into a full-text query. Nothing in it acts as an operator, and typos still find matches.

Each word is matched against the words in the index: first as a prefix, then as a part of a word, then by similar
spelling.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from civman.index.database import Reader

_QUOTED = re.compile(r'"([^"]*)"?|(\S+)')
_TOKEN = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Characters of scripts that are written without spaces between words; words in these scripts are also searched for
inside longer words.
"""
_MOST_TERMS = 40
_MOST_NEAR = 4


@dataclass(frozen=True, slots=True)
class Understood:
    """A parsed query: the FTS5 `match` expression, the `parts` to be found by substring, and the corrected words."""

    match: str = ""
    parts: tuple[str, ...] = ()
    corrections: tuple[tuple[str, str], ...] = ()
    """Pairs of a typed word and the words that are searched for instead."""

    @property
    def is_empty(self) -> bool:
        """Whether the query has no conditions."""
        return not self.match and not self.parts


def understand(reader: Reader, words: Iterable[str]) -> Understood:
    """Parse search words, correcting those that occur nowhere in the library.

    Quoted text must occur exactly as written.
    """
    matches: list[str] = []
    parts: list[str] = []
    corrections: list[tuple[str, str]] = []
    pieces = [(is_phrase, text, tokens_of(text)) for is_phrase, text in _pieces(words)]
    if not any(tokens for *_, tokens in pieces):
        return Understood(parts=tuple(text for _, text, _ in pieces))
    for is_phrase, text, tokens in pieces:
        if not tokens:
            continue  # in `fox & owl`, the `&` is not a word and adds no condition
        if is_phrase:
            matches.append(_quoted(" ".join(tokens)))
        elif len(tokens) > 1:
            together = f"{_quoted(' '.join(tokens))} *"
            if _occurs(reader, together):
                matches.append(together)
            else:
                parts.append(text)
        else:
            found, correction = _one(reader, tokens[0])
            matches.append(found)
            corrections += [(text, correction)] if correction else []
    return Understood(" AND ".join(matches), tuple(parts), tuple(corrections))


def column_match(column: str, text: str) -> str:
    """Build a query for `text` as a phrase in one column; an empty string if `text` contains no words."""
    tokens = tokens_of(text)
    return f"{{{column}}} : {_quoted(' '.join(tokens))}" if tokens else ""


def tokens_of(text: str) -> list[str]:
    """The words of `text` as the full-text table stores them, without case and accents.

    >>> tokens_of("Café_Noir-v2")
    ['cafe', 'noir', 'v2']
    """
    folded = unicodedata.normalize("NFKD", text.casefold())
    return _TOKEN.findall("".join(char for char in folded if not unicodedata.combining(char)))


def _pieces(words: Iterable[str]) -> list[tuple[bool, str]]:
    found = _QUOTED.findall(" ".join(words))
    return [(bool(phrase), phrase or word) for phrase, word in found if (phrase or word).strip()]


def _one(reader: Reader, token: str) -> tuple[str, str]:
    """Return the match expression for a word, and the similar words it matches if the word occurs nowhere (else "")."""
    begins = reader.one("SELECT 1 FROM search_word WHERE term >= ? AND term < ? LIMIT 1", [token, token + "\U0010ffff"])
    if begins is not None and not _UNSPACED.search(token):
        return f"({_quoted(token)} OR {_quoted(token)} *)", ""
    inside = _holding(reader, token)
    if begins is not None or inside:
        return f"({' OR '.join([f'{_quoted(token)} *', *map(_quoted, inside)])})", ""
    near = _near(reader, token)
    if not near:
        return _quoted(token), ""
    return f"({' OR '.join(f'{_quoted(term)} *' for term in near)})", ", ".join(near)


def _occurs(reader: Reader, match: str) -> bool:
    return reader.one("SELECT 1 FROM search WHERE search MATCH ? LIMIT 1", [match]) is not None


def _holding(reader: Reader, token: str) -> list[str]:
    if len(token) < 2 and not _UNSPACED.search(token):
        return []
    sql = "SELECT term FROM search_word WHERE instr(term, ?) ORDER BY doc DESC LIMIT ?"
    return [term for (term,) in reader.all(sql, [token, _MOST_TERMS])]


def _near(reader: Reader, token: str) -> list[str]:
    """Return words with a similar spelling, nearest first; equally near words are ordered by frequency."""
    slack = 0 if len(token) < 4 or token.isdigit() else 1 if len(token) < 6 else 2
    if not slack:
        return []
    pairs = {token[at : at + 2] for at in range(len(token) - 1)}
    sql = "SELECT term, doc FROM search_word WHERE length(term) BETWEEN ? AND ?"
    rated = []
    for term, count in reader.all(sql, [len(token) - slack, len(token) + slack + 3]):
        shared = sum(pair in term for pair in pairs)
        # count shared pairs of adjacent letters: one wrong letter changes two pairs, two swapped letters change three
        if shared >= len(pairs) - 2 * slack - 1:
            distance = min(spelling_distance(token, part, slack) for part in {term, term[: len(token)]})
            if distance <= slack:
                rated.append((distance, term[0] != token[0], -count, term))
    rated.sort(key=lambda one: (*one[:3], len(one[3]), one[3]))
    near = [term for distance, *_, term in rated if distance == rated[0][0]]
    # search matches by prefix, so a word that starts with another word of the list is already found by the shorter one
    return [term for term in near if not any(term != other and term.startswith(other) for other in near)][:_MOST_NEAR]


def spelling_distance(one: str, other: str, most: int) -> int:
    """Count the letters to change, insert, delete or swap. Any number above `most` means "more than `most`".

    >>> spelling_distance("harbuor", "harbour", 2)
    1

    Source: optimal string alignment (Damerau 1964).
    """
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: Sequence[int] = []
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        older, before, row = before, row, [at]
        for place, its in enumerate(other, 1):
            cost = min(before[place] + 1, row[place - 1] + 1, before[place - 1] + (letter != its))
            if at > 1 and place > 1 and letter == other[place - 2] and one[at - 2] == its:
                cost = min(cost, older[place - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return row[-1]


def _quoted(text: str) -> str:
    return f'"{text}"'
