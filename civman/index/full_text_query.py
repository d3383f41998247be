"""What a person typed, as a full-text query: nothing they type is an operator, and a slip of the finger still finds.

Each word is looked up in the vocabulary: what begins with it, else what holds it, else what is spelled nearly so.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from civman.index.database import Reader

_QUOTED = re.compile(r'"([^"]*)"?|(\S+)')
_TOKEN = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Scripts written without spaces: a word of theirs is looked for inside others too."""
_MOST_TERMS = 40
_MOST_NEAR = 4


@dataclass(frozen=True, slots=True)
class Understood:
    """A query: the `match` expression, parts that only a comparison of text can find, and what was read differently."""

    match: str = ""
    parts: tuple[str, ...] = ()
    corrections: tuple[tuple[str, str], ...] = ()
    """What was typed, and the words that were looked for in its place."""

    @property
    def is_empty(self) -> bool:
        """Whether it asks nothing."""
        return not self.match and not self.parts


def understand(reader: Reader, words: Iterable[str]) -> Understood:
    """The query that `words` mean in this library. Text in double quotes has to occur as it stands."""
    matches: list[str] = []
    parts: list[str] = []
    corrections: list[tuple[str, str]] = []
    pieces = [(is_phrase, text, tokens_of(text)) for is_phrase, text in _pieces(words)]
    if not any(tokens for *_, tokens in pieces):
        return Understood(parts=tuple(text for _, text, _ in pieces))
    for is_phrase, text, tokens in pieces:
        if not tokens:
            continue  # `fox & owl`: what is no word asks nothing beside words
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
    """The query for `text` as a phrase in one column; empty where there is no word in it."""
    tokens = tokens_of(text)
    return f"{{{column}}} : {_quoted(' '.join(tokens))}" if tokens else ""


def tokens_of(text: str) -> list[str]:
    """The words of `text` as the full-text table has them: case and accents folded.

    >>> tokens_of("Café_Noir-v2")
    ['cafe', 'noir', 'v2']
    """
    folded = unicodedata.normalize("NFKD", text.casefold())
    return _TOKEN.findall("".join(char for char in folded if not unicodedata.combining(char)))


def _pieces(words: Iterable[str]) -> list[tuple[bool, str]]:
    found = _QUOTED.findall(" ".join(words))
    return [(bool(phrase), phrase or word) for phrase, word in found if (phrase or word).strip()]


def _one(reader: Reader, token: str) -> tuple[str, str]:
    """The expression for one word, and the words it was replaced by if it had to be."""
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
    """Words spelled nearly as `token`, nearest first, of equals the one in most files."""
    slack = 0 if len(token) < 4 or token.isdigit() else 1 if len(token) < 6 else 2
    if not slack:
        return []
    pairs = {token[at : at + 2] for at in range(len(token) - 1)}
    sql = "SELECT term, doc FROM search_word WHERE length(term) BETWEEN ? AND ?"
    rated = []
    for term, count in reader.all(sql, [len(token) - slack, len(token) + slack + 3]):
        shared = sum(pair in term for pair in pairs)
        if shared >= len(pairs) - 2 * slack - 1:  # one slip touches two neighbouring pairs, a swap three
            distance = min(spelling_distance(token, part, slack) for part in {term, term[: len(token)]})
            if distance <= slack:
                rated.append((distance, term[0] != token[0], -count, term))
    rated.sort(key=lambda one: (*one[:3], len(one[3]), one[3]))
    near = [term for distance, *_, term in rated if distance == rated[0][0]]
    # a word that begins with another of them is found along with it
    return [term for term in near if not any(term != other and term.startswith(other) for other in near)][:_MOST_NEAR]


def spelling_distance(one: str, other: str, most: int) -> int:
    """Letters to change, add, leave out or swap with a neighbour; any number above `most` stands for more.

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
