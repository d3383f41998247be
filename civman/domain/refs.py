r"""Parse refs: text that a user types or pastes to refer to a model, file, image or post. Nothing is looked up here.

    123                                   a number: the id of a model or version; the library finds out which
    civitai:123                           a model
    123@456   @456                        a version (of model 123)
    123@456+789?type=VAE                  one of its files, by id or by CivitAI's values
    urn:air:sdxl:lora:civitai:123@456     an AIR, with or without its first components
    https://civitai.com/models/123 …      URLs of pages, API, downloads, images and posts, with or without https
    d15fa1b2c3   sha256:…   hash:12345678 a digest: 8, 10, 12 or 64 hex digits; after sha256: any 10 to 64
    picture:12                            an image made with this library, by its number
    ./x.safetensors   C:\x\y   path:x     a file on this computer
    anything else   name:123              a name or an alias

`str(ref)` is the canonical text and `parse_ref(str(ref)) == ref` for every ref. Source: the AIR grammar and the
URLs that CivitAI's site and client use.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from civman.domain import ref_forms as forms
from civman.domain.catalog import FileId, ModelId, VersionId
from civman.domain.file_suffixes import CONFIG_SUFFIXES, MODEL_SUFFIXES
from civman.domain.pasted_text import unwrapped
from civman.errors import InvalidRef

LARGEST_ID = 2_147_483_647
"""CivitAI's ids are positive 32-bit integers."""
HOSTS = frozenset({"civitai.com", "civitai.red", "civitai.green"})
SUFFIXES = (
    *sorted(MODEL_SUFFIXES), ".zip", ".json", *sorted(CONFIG_SUFFIXES), ".png", ".jpg", ".jpeg", ".webp",
)  # fmt: skip
"""File extensions by which a bare word is recognised as a file."""


class HashKind(StrEnum):
    """The kinds of digest by which CivitAI identifies files."""

    SHA256 = "sha256"
    BLAKE3 = "blake3"
    CRC32 = "crc32"
    AUTOV1 = "autov1"
    AUTOV2 = "autov2"
    AUTOV3 = "autov3"


_DIGITS = {
    HashKind.SHA256: 64,
    HashKind.BLAKE3: 64,
    HashKind.CRC32: 8,
    HashKind.AUTOV1: 8,
    HashKind.AUTOV2: 10,
    HashKind.AUTOV3: 12,
}
_SHORTEST_SHA256 = 10
"""The minimum number of digits after `sha256:`, which is the length of an AutoV2."""
_SELECTOR_KEYS = {"type": "type", "format": "format", "size": "size", "fp": "precision", "quantType": "quant_type"}
"""Maps the query keys in CivitAI's URLs to fields of `FileSelector`."""


def _require(holds: bool, message: str, value: object) -> None:
    if not holds:
        raise InvalidRef(f"{message}: {value}")


@dataclass(frozen=True, slots=True)
class FileSelector:
    """Which file of a version a ref selects: by id, or by CivitAI's values. The default file if all are None."""

    file_id: FileId | None = None
    type: str | None = None
    format: str | None = None
    size: str | None = None
    precision: str | None = None
    quant_type: str | None = None

    def __post_init__(self) -> None:
        _require(self.file_id is None or 0 < self.file_id <= LARGEST_ID, "not a file id", self.file_id)
        _require(
            "" not in (self.type, self.format, self.size, self.precision, self.quant_type),
            "an empty word cannot select a file",
            "",
        )

    @property
    def words(self) -> str | None:
        """The selector as a value for `--file`: a file id or words; None if it selects nothing."""
        if self.file_id is not None:
            return str(self.file_id)
        words = (self.type, self.format, self.size, self.precision, self.quant_type)
        return " ".join(word for word in words if word) or None

    def __str__(self) -> str:
        words = {key: value for key, field in _SELECTOR_KEYS.items() if (value := getattr(self, field)) is not None}
        # a full stop is escaped, too, because one at the end of a ref counts as the end of a sentence
        return (f"+{self.file_id}" if self.file_id else "") + (
            f"?{urlencode(words).replace('.', '%2E')}" if words else ""
        )


ANY_FILE = FileSelector()


@dataclass(frozen=True, slots=True)
class NumberRef:
    """A bare number: the id of a model or of a version; the library finds out which."""

    number: int

    def __post_init__(self) -> None:
        _require(0 < self.number <= LARGEST_ID, "not an id", self.number)

    def __str__(self) -> str:
        return str(self.number)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model page; the version is not specified."""

    model_id: ModelId
    file: FileSelector = ANY_FILE

    def __post_init__(self) -> None:
        _require(0 < self.model_id <= LARGEST_ID, "not a model id", self.model_id)

    def __str__(self) -> str:
        return f"civitai:{self.model_id}{self.file}"


@dataclass(frozen=True, slots=True)
class VersionRef:
    """A version. `model_id` is set if the text contained it, but only the version's id is used."""

    version_id: VersionId
    model_id: ModelId | None = None
    file: FileSelector = ANY_FILE

    def __post_init__(self) -> None:
        _require(0 < self.version_id <= LARGEST_ID, "not a version id", self.version_id)
        _require(self.model_id is None or 0 < self.model_id <= LARGEST_ID, "not a model id", self.model_id)

    def __str__(self) -> str:
        return f"{self.model_id or ''}@{self.version_id}{self.file}"


@dataclass(frozen=True, slots=True)
class Air:
    """An AI resource name (AIR) on CivitAI. Ecosystem and type are stored as given, in lower case, but never used.

    Without an ecosystem there can be no type: a single word at the beginning is always the ecosystem.
    """

    model_id: ModelId
    version_id: VersionId | None = None
    ecosystem: str | None = None
    type: str | None = None
    file_id: FileId | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        for number in (self.model_id, self.version_id, self.file_id):
            _require(number is None or 0 < number <= LARGEST_ID, "not an id", number)
        for word in (self.ecosystem, self.type, self.format):
            _require(word is None or _AIR_WORD.fullmatch(word) is not None, "this word is not allowed in an AIR", word)
        _require(self.format is None or "/" not in self.format, "this format is not allowed in an AIR", self.format)
        _require(self.ecosystem is not None or self.type is None, "an AIR's type needs an ecosystem", self.type)

    @property
    def target(self) -> "ModelRef | VersionRef":
        """The model or version that the AIR refers to, without ecosystem and type."""
        return _numbered(self.model_id, self.version_id, FileSelector(self.file_id, format=self.format))

    def __str__(self) -> str:
        words = [word for word in (self.ecosystem, self.type) if word]
        text = ":".join(["urn:air", *words, "civitai", str(self.model_id)])
        text += f"@{self.version_id}" if self.version_id else ""
        text += f"+{self.file_id}" if self.file_id else ""
        return text + (f".{self.format}" if self.format else "")


@dataclass(frozen=True, slots=True)
class HashRef:
    """A digest in lower case; a SHA-256 may be shortened to 10 digits or more.

    If `kind` is None, the digest may be of any kind in `kinds`.
    """

    digest: str
    kind: HashKind | None = None

    def __post_init__(self) -> None:
        _require(_HEX.fullmatch(self.digest) is not None and bool(self.kinds), "not a digest", self.digest)

    @property
    def kinds(self) -> tuple[HashKind, ...]:
        """The kinds of digest that this may be, according to `kind` and the number of digits."""
        if self.kind is HashKind.SHA256 and _SHORTEST_SHA256 <= len(self.digest) <= 64:
            return (HashKind.SHA256,)
        fitting = tuple(kind for kind, digits in _DIGITS.items() if digits == len(self.digest))
        return fitting if self.kind is None else tuple(kind for kind in fitting if kind is self.kind)

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest}" if self.kind else _escaped("hash", self.digest, self)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image on CivitAI."""

    image_id: int

    def __post_init__(self) -> None:
        _require(0 < self.image_id <= LARGEST_ID, "not an image id", self.image_id)

    def __str__(self) -> str:
        return f"https://civitai.com/images/{self.image_id}"


@dataclass(frozen=True, slots=True)
class PostRef:
    """A post of images on CivitAI."""

    post_id: int

    def __post_init__(self) -> None:
        _require(0 < self.post_id <= LARGEST_ID, "not a post id", self.post_id)

    def __str__(self) -> str:
        return f"https://civitai.com/posts/{self.post_id}"


@dataclass(frozen=True, slots=True)
class PictureRef:
    """An image made with this library, identified by the number that `civman renders` prints."""

    number: int

    def __post_init__(self) -> None:
        _require(0 < self.number <= LARGEST_ID, "not a picture number", self.number)

    def __str__(self) -> str:
        return f"picture:{self.number}"


@dataclass(frozen=True, slots=True)
class PathRef:
    """A file on this computer, as typed. A bare file name may also be the name of something in the library."""

    path: str

    def __post_init__(self) -> None:
        _require(bool(self.path) and _readable(self.path), "not a path", self.path)

    def __str__(self) -> str:
        return _escaped("path", self.path, self)


@dataclass(frozen=True, slots=True)
class NameRef:
    """A name or an alias, as typed."""

    name: str

    def __post_init__(self) -> None:
        _require(bool(self.name) and _readable(self.name), "not a name", self.name)

    def __str__(self) -> str:
        return _escaped("name", self.name, self)


Ref = NumberRef | ModelRef | VersionRef | Air | HashRef | ImageRef | PostRef | PictureRef | PathRef | NameRef

_HEX = re.compile(r"[0-9a-f]+")
_AIR_WORD = re.compile(r"[a-z0-9_/-]+")


def parse_ref(text: str) -> Ref:
    """Parse text that refers to a model, a file, an image or a post.

    Raises: InvalidRef: it has the form of an id, AIR, URL or digest, but civman cannot use it. The message never
        contains a URL's query, which may contain API keys.
    """
    text = text.strip()
    if not text or not _readable(text):
        raise _invalid(
            "nothing to look up: the text is empty" if not text else "the text contains control characters", text
        )
    if (forced := forms.FORCED.fullmatch(text)) and forced[1].lower() in ("name", "path"):
        return _forced(forced[1].lower(), forced[2], text)
    bare = text if forms.PLAIN_PATH.match(text) else unwrapped(text)
    pasted = (
        forms.SCHEME.match, forms.BARE_HOST.match, forms.SHORT.fullmatch, forms.AIR.fullmatch, forms.FORCED.fullmatch,
        forms.NUMBER, _bare_digest,
    )  # fmt: skip
    if any(form(bare) for form in pasted):
        text = bare
    if forced := forms.FORCED.fullmatch(text):
        return _forced(forced[1].lower(), forced[2], text)
    if forms.SCHEME.match(text) or forms.BARE_HOST.match(text):
        return _from_address(text)
    if forms.PLAIN_PATH.match(text):
        return PathRef(text)
    if text.isascii() and text.isdigit():
        return _from_digits(text)
    if short := forms.SHORT.fullmatch(text):
        model, version = short[1] or short[2], short[3]
        file = _strict_selector(short[5] or "", short[4], text)
        return _numbered(_id(model, text) if model else None, _id(version, text) if version else None, file)
    if re.match(r"[0-9]*@", text):
        raise _invalid(
            f"there is no version id after the @: {_shown(text)}",
            text,
            hint="write `model@version` or `@version` with numeric ids",
        )
    if forms.AIR_LIKE.match(text) or forms.OTHER_SOURCE.fullmatch(text):
        return _from_air(text)
    if "/" in text or "\\" in text or text.lower().endswith(SUFFIXES):
        return PathRef(text)
    return _bare_digest(text) or NameRef(text)


def _from_digits(text: str) -> Ref:
    if text[0] != "0" and len(text) <= 10 and int(text) <= LARGEST_ID:
        return NumberRef(int(text))
    if digest := _bare_digest(text):
        return digest
    raise _invalid(f"neither an id nor a hash: {_shown(text)}", text)


def _bare_digest(text: str) -> HashRef | None:
    lowered = text.lower()
    return HashRef(lowered) if len(lowered) in _DIGITS.values() and _HEX.fullmatch(lowered) else None


def _forced(word: str, rest: str, text: str) -> Ref:
    if word == "name":
        return NameRef(rest)
    if word == "path":
        return PathRef(rest)
    if word == "picture":
        return PictureRef(_id(rest, text))
    digest = rest.lower()
    kind = None if word == "hash" else HashKind(word)
    if kind is HashKind.AUTOV3 and len(digest) == 64:
        digest = digest[:12]  # API responses of early 2024 contained AutoV3 digests of 64 digits
    lengths = sorted(set(_DIGITS.values()) if kind is None else {_DIGITS[kind]})
    is_cut = kind is HashKind.SHA256 and _SHORTEST_SHA256 <= len(digest) < 64
    if not _HEX.fullmatch(digest) or not (is_cut or len(digest) in lengths):
        wanted = "10 to 64" if kind is HashKind.SHA256 else " or ".join(map(str, lengths))
        raise _invalid(
            f"not a digest: {_shown(text)}",
            text,
            hint=f"`{word}:` needs {wanted} hex digits, but is followed by {len(digest)} characters",
        )
    return HashRef(digest, kind)


def _from_air(text: str) -> Ref:
    """Parse text with `urn:`, `air:` or an ecosystem into an `Air`, and plain `civitai:1@2` into a version or model."""
    if (found := forms.AIR.fullmatch(text)) is None or found["source"].lower() != "civitai":
        if other := forms.OTHER_SOURCE.fullmatch(text):
            raise _invalid(
                f"the model is on {other[1].lower()}, not on CivitAI: {_shown(text)}",
                text,
                hint="civman can only look up models on CivitAI, whose AIRs have the source `civitai`",
            )
        if found:
            raise _invalid(f"the model is on {found['source'].lower()}, not on CivitAI: {_shown(text)}", text)
        raise _invalid(
            f"not an AIR: {_shown(text)}", text, hint="the form is `urn:air:sdxl:lora:civitai:MODEL@VERSION`"
        )
    lowered = {key: value.lower() for key, value in found.groupdict().items() if value}
    model_id = ModelId(_id(lowered["id"], text))
    version_id = VersionId(_id(lowered["version"], text)) if "version" in lowered else None
    file_id = FileId(_id(lowered["file"], text)) if "file" in lowered else None
    if lowered.keys() & {"urn", "air", "ecosystem"}:
        return Air(model_id, version_id, lowered.get("ecosystem"), lowered.get("type"), file_id, lowered.get("format"))
    return _numbered(model_id, version_id, FileSelector(file_id, format=lowered.get("format")))


def _from_address(text: str) -> Ref:
    try:
        url = urlsplit(text if "//" in text.split("?")[0] and forms.SCHEME.match(text) else f"//{text}")
        host = (url.hostname or "").removeprefix("www.")
    except ValueError:
        # use `from None`, because the original exception contains the whole URL with user name and password
        raise _invalid(f"not a valid URL: {_shown(text)}", text) from None
    if url.scheme not in ("", "http", "https") or not (host in HOSTS or host == "image.civitai.com"):
        hint = (
            "pass the path itself instead of a file: URL"
            if url.scheme == "file"
            else "paste the URL of the model's page on civitai.com"
        )
        raise _invalid(f"not a page of CivitAI: {_shown(text)}", text, hint=hint)
    path = "/".join(part for part in url.path.split("/") if part)
    if host == "image.civitai.com":
        if found := re.search(r"/([0-9]+)\.[a-z0-9]+$", path):
            return ImageRef(_id(found[1], text))
        raise _invalid(f"the image's URL contains no id: {_shown(text)}", text)
    return _from_page(path, url, text)


def _from_page(path: str, url: SplitResult, text: str) -> Ref:
    query = dict(reversed(parse_qsl(url.query)))  # if a key is repeated, the first one counts
    found: Ref | None = None
    match path.removeprefix("api/v1/").split("/"):
        case ["api", "download", "models", version]:
            found = VersionRef(VersionId(_id(version, text)), file=_selector(url.query, query.get("fileId"), text))
        case ["api", "download", "training-data", version]:
            found = VersionRef(VersionId(_id(version, text)), file=FileSelector(type="Training Data"))
        case ["models", model, "model-versions", version, *_]:
            found = VersionRef(VersionId(_id(version, text)), ModelId(_id(model, text)))
        case ["models", model, *_]:
            wanted = query.get("modelVersionId")
            found = _numbered(_id(model, text), _id(wanted, text) if wanted else None, ANY_FILE)
        case ["model-versions", "by-hash", digest]:
            found = _bare_digest(digest)
        case ["model-versions", "mini", version]:
            found = VersionRef(VersionId(_id(version, text)), file=_selector("", query.get("modelFileId"), text))
        case ["model-versions", version, *_]:
            found = VersionRef(VersionId(_id(version, text)))
        case ["images" | "posts" as section, *rest]:
            found = _picture(section, rest, query, text)
    if found is None:
        what = forms.NOT_MODELS.get(path.split("/")[0])
        message = f"{what}, not a model" if what else "the URL contains no model id"
        raise _invalid(f"{message}: {_shown(text)}", text, hint="paste a URL like https://civitai.com/models/123")
    return found


def _picture(section: str, rest: list[str], query: dict[str, str], text: str) -> ImageRef | PostRef | None:
    """Return the image or post of a URL: `/images/1`, `/posts/1`, or the API's `/images?imageId=1` and `?postId=1`."""
    if section == "posts":
        return PostRef(_id(rest[0], text)) if rest else None
    if rest or "imageId" in query:
        return ImageRef(_id(rest[0] if rest else query["imageId"], text))
    return PostRef(_id(query["postId"], text)) if "postId" in query else None


def _selector(query: str, file_id: str | None, text: str) -> FileSelector:
    """Parse which file a URL's query selects. Other keys, most importantly `token`, are dropped."""
    given = dict(reversed(parse_qsl(query)))
    words = {field: given[key] for key, field in _SELECTOR_KEYS.items() if given.get(key)}
    return FileSelector(FileId(_id(file_id, text)) if file_id else None, **words)


def _strict_selector(query: str, file_id: str | None, text: str) -> FileSelector:
    """Parse which file the query of a canonical ref selects; unknown keys are an error."""
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(key not in _SELECTOR_KEYS or not value for key, value in pairs):
        raise _invalid(
            f"cannot select a file by {_shown(text)}",
            text,
            hint=f"after the ?, only these keys are allowed: {', '.join(_SELECTOR_KEYS)}",
        )
    return _selector(query, file_id, text)


def _numbered(model_id: int | None, version_id: int | None, file: FileSelector) -> ModelRef | VersionRef:
    if version_id is not None:
        return VersionRef(VersionId(version_id), None if model_id is None else ModelId(model_id), file)
    assert model_id is not None
    return ModelRef(ModelId(model_id), file)


def _id(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20 or not 0 < int(digits) <= LARGEST_ID:
        raise _invalid(
            f"not an id: `{_shown(digits)}` in {_shown(text)}", text, hint=f"ids are whole numbers up to {LARGEST_ID}"
        )
    return int(digits)


def _escaped(word: str, text: str, ref: Ref) -> str:
    """Return `text` if it parses as `ref` without a prefix, or else `text` after the prefix `word:`."""
    try:
        return text if parse_ref(text) == ref else f"{word}:{text}"
    except InvalidRef:
        return f"{word}:{text}"


def _readable(text: str) -> bool:
    return text == text.strip() and not any(ord(char) < 32 or ord(char) == 127 for char in text)


def _shown(text: str) -> str:
    """Shorten `text` for a message; if it is a URL, also remove its query, fragment and user name."""
    bare = re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", text, maxsplit=1)[0])
    return bare if len(bare) <= 100 else f"{bare[:97]}..."


def _invalid(message: str, text: str, *, hint: str | None = None) -> InvalidRef:
    return InvalidRef(message, hint=hint, text=_shown(text))
