"""Finds the adapters and embeddings that prompts name, and adds the trigger words of adapters to the prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from civman.domain.adapters.adapter_tensors import deltas_of
from civman.domain.adapters.block_weights import blocks_of
from civman.domain.adapters.scale_keyframes import read_scale
from civman.domain.embedding_tensors import packed, read_embedding
from civman.domain.recipes.recipe import EmbeddingUse, LoraUse
from civman.errors import AmbiguousRef, Cause, Incompatible, InvalidModelFile, UsageError
from civman.planning.find_files import Finder, Found
from civman.prompts import editing, emphasis

_MOST_SCALE = 100.0
_MOST_LISTED = 8


@dataclass(frozen=True, slots=True)
class ScaledLora:
    """An adapter's file with its scales for the UNet and for the text encoders."""

    found: Found
    scale: float
    text_scale: float
    blocks: str = ""
    keyframes: str = ""
    hires_keyframes: str = ""

    @classmethod
    def of(
        cls, found: Found, scale: float, text_scale: float | None, blocks: str, keyframes: str, hires_keyframes: str
    ) -> "ScaledLora":
        """Parse the block weights and scales of a request.

        If `text_scale` is None, the text encoders use the UNet's scale of the first step. Raises: UsageError
        (`bad-scale`).
        """
        first, changing = read_scale(keyframes) if keyframes else (scale, "")
        second = ""
        if hires_keyframes:
            number, second = read_scale(hires_keyframes)
            second = second or f"{number:g}@0"
        if second == (changing or f"{first:g}@0"):
            second = ""
        text = first if text_scale is None else text_scale
        return cls(found, first, text, blocks_of(blocks) if blocks else "", changing, second)

    def use(self, *, has_hires: bool) -> LoraUse:
        """Return the adapter as a recipe lists it. Without a second pass, its scale for that pass is left out."""
        second = self.hires_keyframes if has_hires else ""
        return LoraUse(self.found.sha256, self.scale, self.text_scale, self.blocks, self.keyframes, second)

    def __post_init__(self) -> None:
        if any(not abs(scale) <= _MOST_SCALE for scale in (self.scale, self.text_scale)):
            raise UsageError(
                f"the scale of `{self.found.inspected.name}` is outside ±{_MOST_SCALE:.0f}",
                hint="choose a scale in the usual range from 0 to 1.5", code=Cause.BAD_SCALE,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Words:
    """Both prompts without their tags, and the adapters and hypernetworks that the tags request."""

    prompt: str
    negative: str
    loras: tuple[emphasis.LoraRequest, ...]
    hypernetworks: tuple[emphasis.LoraRequest, ...] = ()


def read(prompt: str, negative: str) -> Words:
    """Parse both prompts. Raises: UsageError (`prompt-syntax`): a prompt has invalid or unsupported syntax."""
    wanted, unwanted = emphasis.parse(prompt), emphasis.parse(negative)
    if unwanted.loras:
        raise UsageError(
            f"the negative prompt contains a tag for the adapter `{unwanted.loras[0].name}`",
            hint="move the tag to the prompt, with a negative scale for the opposite effect: an adapter "
            "changes the whole picture",
            code=Cause.PROMPT_SYNTAX,
        )
    text = wanted.text.strip() if wanted.loras else prompt
    if emphasis.parse(text).loras:
        raise UsageError("the prompt contains a tag inside another tag", code=Cause.PROMPT_SYNTAX)
    loras, hypernetworks = (tuple(each for each in wanted.loras if each.kind == kind) for kind in ("lora", "hypernet"))
    return Words(text, negative, loras, hypernetworks)


def add_triggers(prompt: str, loras: Sequence[ScaledLora]) -> tuple[str, tuple[str, ...]]:
    """Append missing trigger words to the prompt. Returns the new prompt, and notices about what was added.

    For each adapter, the first entry of a list of trigger words is added: the user's own list, else CivitAI's, else the
    file's. The entries are usually alternatives (words that belong together share one entry), so the remaining entries
    are only mentioned in the notice. Nothing is added if the prompt already contains one of the entries, if the
    adapter's scale is 0 or negative, or if the prompt combines several prompts with `AND` or ends with a weight.
    """
    notices = []
    is_composed = editing.is_composed(prompt)
    for lora in loras:
        if lora.found.asset is None or lora.scale <= 0:
            continue
        own = list(dict.fromkeys(word for word in map(_plain, _trigger_words(lora.found)) if word))
        if not own or any(_mentions(prompt, word.partition(",")[0]) for word in own):
            continue
        added, others = own[0], own[1:]
        if is_composed:
            notices.append(
                f"the prompt contains AND or ends with a weight, so no trigger words of `{lora.found.inspected.name}` "
                "are"
                f" added; the first ones are: {added}"
            )
            continue
        prompt = f"{prompt.rstrip().rstrip(',')}, {added}" if prompt.strip() else added
        listed = ", ".join(others[:_MOST_LISTED]) + (" …" if others[_MOST_LISTED:] else "")
        not_added = f" (not added: {listed})" if others else ""
        notices.append(f"trigger words of `{lora.found.inspected.name}` added to the prompt: {added}{not_added}")
    return prompt, tuple(notices)


def _trigger_words(found: Found) -> tuple[str, ...]:
    asset = found.asset
    assert asset is not None
    return asset.own.trigger_words or asset.trained_words or asset.facts.trigger_words


def _plain(word: str) -> str:
    """Return a trigger word for use in a prompt: without tags, and escaped. Empty if nothing is left."""
    try:
        text = emphasis.parse(word).text.strip()
    except UsageError:
        text = word.strip()
    text = text if "\\" in text else emphasis.escape(text)
    try:
        return "" if emphasis.parse(text).loras or editing.is_composed(text) else text
    except UsageError:  # skip a trigger word that contains an invalid tag or weight
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
    called: Sequence[tuple[str, str]] = (),
    loras: Sequence[Found] = (),
    fits: Callable[[Found], bool],
) -> tuple[list[Found], list[EmbeddingUse]]:
    """Find the embeddings in use: the requested ones, stored ones whose name occurs in a prompt, and packed ones.

    A stored embedding's names are its file name, its alias and its trigger words. `called`: pairs of a word and the ref
    of the embedding that this word means; they take precedence over the embeddings' own names. Packed embeddings are
    inside the files of `loras`; a separate file takes precedence over a packed embedding with the same name. `fits`
    returns whether a file fits the checkpoint; stored embeddings that do not fit are ignored.

    Raises: UsageError (`embedding-unused`): a requested embedding's name occurs in neither prompt. AmbiguousRef: two
        embeddings have the same name.
    """
    asked = [finder.find("embedding", ref) for ref in named]
    by_digest = {found.sha256: found for found in asked}
    bound: dict[str, Found] = {}
    for word, ref in called:
        if _called(prompts, word):
            found = finder.find("embedding", ref)
            bound[word] = by_digest.setdefault(found.sha256, found)
    taken = set(by_digest)
    named_there = [
        finder.of_asset("embedding", asset)
        for asset in finder.embeddings()
        if asset.blob.sha256 not in taken and any(_called(prompts, name) for name in (*_stems(asset.name, asset.alias),
                                                                                       *asset.trained_words))
    ]  # fmt: skip
    candidates = [*by_digest.values(), *(found for found in named_there if fits(found))]
    words = _names(candidates, prompts, bound)
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
                f"neither prompt uses the embedding `{found.inspected.name}`",
                hint=f"to use it, write `{found.names[0]}` in a prompt", code=Cause.EMBEDDING_UNUSED,
            )  # fmt: skip
    files = [found for found in candidates if any(words[name] is found for name in used)]
    return files, [EmbeddingUse(words[name].sha256, name) for name in sorted(used)]


def _names(candidates: Sequence[Found], prompts: Sequence[str], bound: Mapping[str, Found]) -> dict[str, Found]:
    """Map each embedding name that occurs in a prompt to its embedding.

    `bound`: the names for which the request specifies the embedding.
    """
    names = dict(bound)
    certain = {_folded(word) for word in bound}
    folded: dict[str, Found] = {}
    for found in candidates:
        trained = found.asset.trained_words if found.asset else ()
        for name in (*found.names, *trained):
            if not _called(prompts, name) or _folded(name) in certain:
                continue
            other = folded.setdefault(_folded(name), found)
            if other.sha256 != found.sha256:
                raise AmbiguousRef(
                    f"`{name}` in the prompt could be the embedding `{other.inspected.name}` or"
                    f" `{found.inspected.name}`",
                    hint="give one of these embeddings an alias (`civman edit REF --alias NAME`) and use "
                    "that in the prompt",
                    candidates=[f"sha256:{each.sha256}" for each in (other, found)],
                )
            if _folded(name) not in {_folded(known) for known in names}:
                names[name] = found
    return names


def _used(words: Mapping[str, Found], prompts: Sequence[str]) -> set[str]:
    """Return the names that the prompts actually use, found with the parser that rendering uses."""
    if not words:
        return set()
    # imported here: the tokenizer takes 0.3 s to import, and most prompts use no embedding
    from civman.prompts.token_chunks import cut
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
    """Check that embeddings packed in adapters fit the checkpoint's text encoders.

    Raises: Incompatible: an embedding does not fit.
    """
    widths = checkpoint.identity.text_widths
    for use, found in packed_uses:
        read = read_embedding(packed(found.header.shapes, use.word))
        places = read.places(widths) if widths and not isinstance(read, str) else ["unknown"]
        if not any(places) or (None in places and not allow_partial):
            raise Incompatible(
                f"the embedding `{use.word}` in `{found.inspected.name}` was made for other text encoders than the"
                f" checkpoint's, whose width is {' and '.join(map(str, widths))}",
                hint="leave the word out of the prompt, or apply the embedding where it fits with --allow-partial"
                if any(places)
                else "leave the word out of the prompt",
                code=Cause.EMBEDDING_WIDTH, embedding=use.word,
            )  # fmt: skip


def _vectors(found: Found, name: str) -> int:
    """Return the number of vectors in an embedding. Raises: InvalidModelFile: the embedding is invalid."""
    shapes = found.header.shapes
    read = read_embedding(packed(shapes, name) or shapes)
    if isinstance(read, str):
        problem = read
        raise InvalidModelFile(f"`{found.inspected.name}` contains no valid embedding `{name}`: {problem}", name=name)
    return read.length


def _stems(name: str, alias: str | None) -> tuple[str, ...]:
    stem = name.rpartition(".")[0] or name
    return (alias, stem) if alias else (stem,)


def _called(prompts: Sequence[str], name: str) -> bool:
    """Whether `name` may occur in a prompt: a fast test that finds every name, but may have false positives."""
    plain = _folded(name).strip()
    return bool(plain) and any(plain in _folded(prompt) for prompt in prompts)
