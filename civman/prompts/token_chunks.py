"""Split a parsed prompt into chunks of 75 tokens, which a CLIP text encoder reads one at a time. No torch.

The rules are those of A1111 1.6 to 1.10. Every fragment is tokenized separately. `BREAK` ends a chunk. If the last
comma of a full chunk is at most 20 tokens from the chunk's end, the tokens after the comma move to the next chunk. An
embedding's vectors stay together.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from civman.errors import Cause, Incompatible, UsageError
from civman.prompts.emphasis import ParsedPrompt
from civman.prompts.tokenizer import CHUNK, COMMA, ClipTokenizer

_BACKTRACK = 20


@dataclass(frozen=True, slots=True)
class Insert:
    """Where `length` of an embedding's vectors are inserted into a chunk; `offset` does not count the start token."""

    offset: int
    name: str
    length: int
    begin: int = 0
    """The index of the first of the embedding's vectors to insert."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most 75 tokens with their weights. Where an `Insert` puts vectors, the token ids are 0 and have no meaning."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    inserts: tuple[Insert, ...] = ()


def cut(parsed: ParsedPrompt, tokenizer: ClipTokenizer, lengths: Mapping[str, int] | None = None) -> tuple[Chunk, ...]:
    """Split a prompt into one or more chunks.

    Args:
        parsed: the prompt.
        tokenizer: any of the model's tokenizers (all have the same vocabulary).
        lengths: the number of vectors of each available embedding, by name.

    Raises:
        UsageError: the names of two embeddings have the same tokens, or a name has none.
        Incompatible: an embedding has more vectors than fit into a chunk.
    """
    lengths = lengths or {}
    for name, length in lengths.items():
        if length > CHUNK:
            raise Incompatible(
                f"embedding `{name}` has {length} vectors, but a text encoder reads {CHUNK} tokens at a time",
                code=Cause.EMBEDDING_TOO_LONG,
                embedding=name,
                vectors=length,
            )
    finder = _Finder(lengths, tokenizer)
    packer = _Packer()
    for number, section in enumerate(parsed.sections):
        if number:
            packer.close()
        for fragment in section:
            for found in finder.pieces(fragment.text):
                if isinstance(found, str):
                    packer.insert(found, lengths[found], fragment.weight)
                else:
                    packer.add(found, fragment.weight)
    return packer.finished()


def used(chunks: Iterable[Chunk]) -> frozenset[str]:
    """Return the names of the embeddings that the prompt actually uses."""
    return frozenset(insert.name for chunk in chunks for insert in chunk.inserts)


class _Finder:
    """Finds embeddings in a fragment by the token ids of their names; the longest match is used.

    A name that starts or ends with punctuation, such as `<cat-toy>`, is searched for in the text before tokenizing,
    because the tokenizer could merge it with the neighbouring characters.
    """

    def __init__(self, names: Iterable[str], tokenizer: ClipTokenizer) -> None:
        self._tokenizer = tokenizer
        self._by_first: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        self._by_text: dict[str, str] = {}
        seen: dict[tuple[int, ...], str] = {}
        for name in sorted(names):
            ids = tuple(tokenizer.ids(name))
            if not ids:
                raise UsageError(f"`{name}` is not a valid name for an embedding: a prompt could not contain it")
            if ids in seen:
                raise UsageError(
                    f"a prompt cannot distinguish the embeddings `{seen[ids]}` and `{name}` by their names",
                    code=Cause.AMBIGUOUS_EMBEDDING,
                    hint="rename one of the two embeddings",
                )
            seen[ids] = name
            self._by_first.setdefault(ids[0], []).append((ids, name))
            plain = name.strip()
            if not (plain[0].isalnum() and plain[-1].isalnum()):
                self._by_text[plain.lower()] = name
        for same_start in self._by_first.values():
            same_start.sort(key=lambda entry: -len(entry[0]))
        ordered = sorted(self._by_text, key=len, reverse=True)
        self._text = re.compile("(" + "|".join(map(re.escape, ordered)) + ")", re.IGNORECASE) if ordered else None

    def pieces(self, text: str) -> Iterator[int | str]:
        """Yield the token ids of a text; where an embedding occurs, yield its name instead."""
        for part in self._text.split(text) if self._text else (text,):
            if (name := self._by_text.get(part.lower())) is not None:
                yield name
            else:
                yield from self._in_tokens(self._tokenizer.ids(part))

    def _in_tokens(self, ids: list[int]) -> Iterator[int | str]:
        at = 0
        while at < len(ids):
            for wanted, name in self._by_first.get(ids[at], ()):
                if tuple(ids[at : at + len(wanted)]) == wanted:
                    yield name
                    at += len(wanted)
                    break
            else:
                yield ids[at]
                at += 1


@dataclass(slots=True)
class _Packer:
    """Fills chunks from left to right."""

    done: list[Chunk] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    inserts: list[Insert] = field(default_factory=list)
    comma: int | None = None

    def add(self, token: int, weight: float) -> None:
        if token == COMMA:
            self.comma = len(self.ids)
        else:
            self._move_tail()
        if len(self.ids) == CHUNK:
            self.close()
            # a comma at the start of a chunk does not count as its last comma
        self.ids.append(token)
        self.weights.append(weight)

    def insert(self, name: str, length: int, weight: float) -> None:
        self._move_tail()
        if len(self.ids) + length > CHUNK:
            self.close()
        self.inserts.append(Insert(len(self.ids), name, length))
        self.ids += [0] * length
        self.weights += [weight] * length

    def close(self) -> None:
        self.done.append(Chunk(tuple(self.ids), tuple(self.weights), tuple(self.inserts)))
        self.ids, self.weights, self.inserts, self.comma = [], [], [], None

    def finished(self) -> tuple[Chunk, ...]:
        if self.ids or not self.done:
            self.close()
        return tuple(self.done)

    def _move_tail(self) -> None:
        """If a full chunk has a comma near its end, move the tokens after its last comma to the next chunk."""
        if len(self.ids) != CHUNK or self.comma is None or CHUNK - self.comma > _BACKTRACK:
            return
        start = self.comma + 1
        ids, weights = self.ids[start:], self.weights[start:]
        moved = [Insert(each.offset - start, each.name, each.length) for each in self.inserts if each.offset >= start]
        self.inserts = [each for each in self.inserts if each.offset < start]
        del self.ids[start:], self.weights[start:]
        self.close()
        self.ids, self.weights, self.inserts = ids, weights, moved
