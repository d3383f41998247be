"""What prompts ask for besides words: adapters by tag, embeddings by name; and the trigger words adapters want."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from civman.domain.adapters.adapter_tensors import deltas_of
from civman.domain.embedding_tensors import packed, read_embedding
from civman.domain.recipes.recipe import EmbeddingUse
from civman.errors import AmbiguousRef, Cause, Incompatible, InvalidModelFile, UsageError
from civman.planning.find_files import Finder, Found
from civman.prompts import emphasis

_MOST_SCALE = 100.0
_MOST_TOLD = 8


@dataclass(frozen=True, slots=True)
class ScaledLora:
    """An adapter found, and how strongly it is to act on the UNet and on the text encoders."""

    found: Found
    scale: float
    text_scale: float

    def __post_init__(self) -> None:
        if any(not abs(scale) <= _MOST_SCALE for scale in (self.scale, self.text_scale)):
            raise UsageError(
                f"a scale beyond ±{_MOST_SCALE:.0f} for `{self.found.inspected.name}`",
                hint="scales are mostly between 0 and 1.5", code=Cause.BAD_SCALE,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Words:
    """Both prompts without tags, and what they asked for."""

    prompt: str
    negative: str
    loras: tuple[emphasis.LoraRequest, ...]


def read(prompt: str, negative: str) -> Words:
    """Both prompts taken apart. Raises: UsageError (`prompt-syntax`): what cannot be read or is not supported."""
    wanted, unwanted = emphasis.parse(prompt), emphasis.parse(negative)
    if unwanted.loras:
        raise UsageError(
            f"the negative prompt asks for the adapter `{unwanted.loras[0].name}`",
            hint="an adapter changes the whole picture: put its tag into the prompt, with a negative scale if that is"
            " what is meant",
            code=Cause.PROMPT_SYNTAX,
        )
    text = wanted.text.strip() if wanted.loras else prompt
    if emphasis.parse(text).loras:
        raise UsageError("the prompt has a tag inside a tag", code=Cause.PROMPT_SYNTAX)
    return Words(text, negative, wanted.loras)


def add_triggers(prompt: str, loras: Sequence[ScaledLora]) -> tuple[str, tuple[str, ...]]:
    """The prompt with the trigger words that it lacks at its end, and notices that say which.

    Of each adapter the first entry by its nearest witness: you, else CivitAI, else the file. Lists hold alternatives
    more often than words that belong together (those stand in one entry), so the others are only told. A prompt that
    has one of them has made its choice and gets none; nor are there any for scales of 0 and below.
    """
    notices = []
    for lora in loras:
        if lora.found.asset is None or lora.scale <= 0:
            continue
        own = list(dict.fromkeys(word for word in map(_plain, _trigger_words(lora.found)) if word))
        if not own or any(_mentions(prompt, word.partition(",")[0]) for word in own):
            continue
        added, others = own[0], own[1:]
        prompt = f"{prompt.rstrip().rstrip(',')}, {added}" if prompt.strip() else added
        told = f" (not added: {', '.join(others[:_MOST_TOLD])}{' …' if others[_MOST_TOLD:] else ''})" if others else ""
        notices.append(f"trigger words of `{lora.found.inspected.name}` added to the prompt: {added}{told}")
    return prompt, tuple(notices)


def _trigger_words(found: Found) -> tuple[str, ...]:
    asset = found.asset
    assert asset is not None
    return asset.own.trigger_words or asset.trained_words or asset.facts.trigger_words


def _plain(word: str) -> str:
    """A trigger word as a prompt can hold it: no tags, brackets as plain text; "" where nothing is left."""
    try:
        text = emphasis.parse(word).text.strip()
    except UsageError:
        text = word.strip()
    text = text if "\\" in text else emphasis.escape(text)
    try:
        return "" if emphasis.parse(text).loras else text
    except UsageError:  # words in capitals that mean something in a prompt
        return ""


def _mentions(prompt: str, word: str) -> bool:
    return _folded(word) in _folded(prompt)


def _folded(text: str) -> str:
    return " ".join(text.replace("\\", "").casefold().split())


def embeddings(
    finder: Finder,
    named: Sequence[str],
    prompts: Sequence[str],
    *,
    loras: Sequence[Found] = (),
    fits: Callable[[Found], bool],
) -> tuple[list[Found], list[EmbeddingUse]]:
    """The embeddings that are named, held ones that a prompt calls by name, alias or trigger word, and packed ones.

    Packed ones are those inside the files of `loras`; a file of its own goes before one of the same name. `fits` says
    whether a file goes with the checkpoint; a held one that does not is left alone.

    Raises: UsageError (`embedding-unused`): no prompt calls one that was named. AmbiguousRef: two have one name.
    """
    asked = [finder.find("embedding", ref) for ref in named]
    taken = {found.sha256 for found in asked}
    called = [
        finder.of_asset("embedding", asset)
        for asset in finder.embeddings()
        if asset.blob.sha256 not in taken and any(_called(prompts, name) for name in (*_stems(asset.name, asset.alias),
                                                                                       *asset.trained_words))
    ]  # fmt: skip
    candidates = [*asked, *(found for found in called if fits(found))]
    words = _names(candidates, prompts)
    known = {_folded(name) for name in words}
    for lora in loras:
        for name in deltas_of(lora.header).bundled:
            if _called(prompts, name) and _folded(name) not in known:
                known.add(_folded(name))
                words[name] = lora
    used = _used(words, prompts)
    for found in asked:
        if not any(words[name] is found for name in used):
            raise UsageError(
                f"neither prompt calls the embedding `{found.inspected.name}`",
                hint=f"write `{found.names[0]}` where it is meant", code=Cause.EMBEDDING_UNUSED,
            )  # fmt: skip
    files = [found for found in candidates if any(words[name] is found for name in used)]
    return files, [EmbeddingUse(words[name].sha256, name) for name in sorted(used)]


def _names(candidates: Sequence[Found], prompts: Sequence[str]) -> dict[str, Found]:
    """Name in the prompts → embedding."""
    names: dict[str, Found] = {}
    folded: dict[str, Found] = {}
    for found in candidates:
        trained = found.asset.trained_words if found.asset else ()
        for name in (*found.names, *trained):
            if not _called(prompts, name):
                continue
            other = folded.setdefault(_folded(name), found)
            if other.sha256 != found.sha256:
                raise AmbiguousRef(
                    f"`{name}` in the prompt could be the embedding `{other.inspected.name}` or"
                    f" `{found.inspected.name}`",
                    hint="give one of them an alias (`civman edit REF --alias NAME`) and use that",
                    candidates=[f"sha256:{each.sha256}" for each in (other, found)],
                )
            if _folded(name) not in {_folded(known) for known in names}:
                names[name] = found
    return names


def _used(words: Mapping[str, Found], prompts: Sequence[str]) -> set[str]:
    """Those of the names that a prompt calls, by the rules that rendering goes by."""
    if not words:
        return set()
    from civman.prompts.token_chunks import cut  # with the tokenizer 0.3 s, and most prompts call nothing
    from civman.prompts.tokenizer import clip_tokenizer

    lengths = {name: _vectors(found, name) for name, found in words.items()}
    tokenizer = clip_tokenizer()
    return {
        insert.name
        for prompt in prompts
        for chunk in cut(emphasis.parse(prompt), tokenizer, lengths)
        for insert in chunk.inserts
    }


def require_widths(
    checkpoint: Found, packed_uses: Sequence[tuple[EmbeddingUse, Found]], *, allow_partial: bool
) -> None:
    """Raises: Incompatible: an embedding that an adapter packs was made for other text encoders."""
    widths = checkpoint.identity.text_widths
    for use, found in packed_uses:
        read = read_embedding(packed(found.header.shapes, use.word))
        places = read.places(widths) if widths and not isinstance(read, str) else ["unknown"]
        if not any(places) or (None in places and not allow_partial):
            raise Incompatible(
                f"the embedding `{use.word}` in `{found.inspected.name}` is made for other text encoders than the"
                f" checkpoint's, which are {' and '.join(map(str, widths))} wide",
                hint="leave the word out of the prompt"
                + (", or --allow-partial applies it where it fits" if any(places) else ""),
                code=Cause.EMBEDDING_WIDTH, embedding=use.word,
            )  # fmt: skip


def _vectors(found: Found, name: str) -> int:
    """How many vectors it has. Raises: InvalidModelFile: it is no embedding that can be read."""
    shapes = found.header.shapes
    read = read_embedding(packed(shapes, name) or shapes)
    if isinstance(read, str):
        raise InvalidModelFile(f"`{found.inspected.name}` holds no embedding `{name}`: {read}", name=name)
    return read.length


def _stems(name: str, alias: str | None) -> tuple[str, ...]:
    stem = name.rpartition(".")[0] or name
    return (alias, stem) if alias else (stem,)


def _called(prompts: Sequence[str], name: str) -> bool:
    """A quick look, that may say yes too often."""
    plain = _folded(name).strip()
    return bool(plain) and any(plain in _folded(prompt) for prompt in prompts)
