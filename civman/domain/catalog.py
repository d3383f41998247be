"""CivitAI's three levels (model, version, file), and the files that the library stores.

CivitAI may add values at any time: an unknown model type becomes `ModelType.OTHER`, with the original text kept. Every
field that CivitAI may leave out is optional here. Times are timezone-aware, in UTC. Sizes are in bytes.

Source: CivitAI's public REST API, version 1.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NewType

from civman.domain.digests import Hashes, Sha256

ModelId = NewType("ModelId", int)
VersionId = NewType("VersionId", int)
FileId = NewType("FileId", int)


class ModelType(StrEnum):
    """Types of model, in CivitAI's spelling (its `types=` parameter is case-sensitive)."""

    CHECKPOINT = "Checkpoint"
    LORA = "LORA"
    LOCON = "LoCon"
    DORA = "DoRA"
    EMBEDDING = "TextualInversion"
    HYPERNETWORK = "Hypernetwork"
    AESTHETIC_GRADIENT = "AestheticGradient"
    CONTROLNET = "Controlnet"
    UPSCALER = "Upscaler"
    MOTION_MODULE = "MotionModule"
    VAE = "VAE"
    TEXT_ENCODER = "TextEncoder"
    UNET = "UNet"
    CLIP_VISION = "CLIPVision"
    CLIP = "CLIP"
    VISION_LANGUAGE = "VisionLanguage"
    LLM = "LLM"
    POSES = "Poses"
    WILDCARDS = "Wildcards"
    WORKFLOWS = "Workflows"
    COMFY_WORKFLOWS = "ComfyWorkflows"
    DETECTION = "Detection"
    OTHER = "Other"

    @classmethod
    def of(cls, raw: str | None) -> "ModelType":
        """Return the member whose value is `raw`, ignoring case, or else OTHER."""
        wanted = (raw or "").casefold()
        return next((member for member in cls if member.value.casefold() == wanted), cls.OTHER)

    @property
    def is_adapter(self) -> bool:
        """Whether a model of this type modifies a checkpoint's weights and cannot be used alone."""
        return self in (ModelType.LORA, ModelType.LOCON, ModelType.DORA)


OTHER_CONTENTS: Final = frozenset(
    {ModelType.POSES, ModelType.WILDCARDS, ModelType.WORKFLOWS, ModelType.COMFY_WORKFLOWS}
)
"""The types of uploads that contain no weights."""


class Scan(StrEnum):
    """The result of CivitAI's scan of a file."""

    PENDING = "Pending"
    SUCCESS = "Success"
    DANGER = "Danger"
    ERROR = "Error"
    UNKNOWN = "Unknown"

    @classmethod
    def of(cls, raw: str | None) -> "Scan":
        """Return the member whose value is `raw`; UNKNOWN if `raw` is None or not a known value."""
        return next((member for member in cls if member.value == raw), cls.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Licence:
    """What the creator of a model permits. A field is None if CivitAI does not state it.

    `commercial_use` contains CivitAI's values ("Image", "RentCivit", "Rent", "Sell"); empty means that no commercial
    use is permitted. Old responses contain a single value; all lower values have been added to it.
    """

    credit_required: bool | None = None
    commercial_use: tuple[str, ...] | None = None
    derivatives_allowed: bool | None = None
    different_licence_allowed: bool | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model page without its versions. If `is_complete` is False, only a short summary of the model is known."""

    id: ModelId
    name: str
    type: ModelType
    type_raw: str
    nsfw: bool = False
    nsfw_level: int = 0
    """The bit mask of the ratings of the model's images: 1 PG, 2 PG-13, 4 R, 8 X, 16 XXX, 32 blocked; 0: unrated."""
    real_person: bool = False
    mode: str | None = None
    """The model's state on CivitAI: None if normal, else "Archived" or "TakenDown"."""
    creator: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    """The creator's description as HTML."""
    licence: Licence = Licence()
    download_count: int | None = None
    thumbs_up_count: int | None = None
    is_complete: bool = True
    """False if the model comes from a response about a version, which contains only a short summary of the model."""
    raw: str = field(default="{}", repr=False, compare=False)
    """The JSON object of the model as received from CivitAI, without its versions."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Paid or early access. If `ends_at` is None and `permanent` is False, no end has been set yet."""

    permanent: bool = False
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """An image or video that CivitAI shows for a version."""

    url: str
    nsfw_level: int = 0
    width: int | None = None
    height: int | None = None
    media: str = "image"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a version."""

    id: FileId | None
    name: str
    type: str
    """CivitAI's type of file: "Model", "Pruned Model", "VAE", "Config", "Training Data" …"""
    size_bytes: int | None
    hashes: Hashes = Hashes()  # noqa: RUF009  # frozen, so instances can share one value
    is_primary: bool = False
    is_linked: bool = False
    """Whether the file belongs to another version (shared VAE), so that this version's download URL rejects its id."""
    format: str | None = None
    """CivitAI's value: "SafeTensor", "PickleTensor", "GGUF", "Other" … The file's extension and contents are more
    reliable.
    """
    precision: str | None = None
    size_class: str | None = None
    """"full" or "pruned"; None if CivitAI does not state it."""
    quant_type: str | None = None
    pickle_scan: Scan = Scan.UNKNOWN
    virus_scan: Scan = Scan.UNKNOWN
    scan_message: str | None = None
    download_url: str | None = None
    raw: str = field(default="{}", repr=False, compare=False)

    @property
    def suffix(self) -> str:
        """The file extension in lower case, such as ".safetensors"; "" if there is none."""
        stem, dot, tail = self.name.rpartition(".")
        return f".{tail.lower()}" if dot and stem and tail.isalnum() else ""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, with its files."""

    id: VersionId
    model: Model
    name: str
    base_model: str | None
    """CivitAI's base-model label, chosen by the uploader and unchanged ("SDXL 1.0", "Pony")."""
    files: tuple[ModelFile, ...] = ()
    base_model_type: str | None = None
    published_at: datetime | None = None
    trained_words: tuple[str, ...] = ()
    """Trigger words, split at commas if the creator wrote several in one entry."""
    description: str | None = None
    air: str | None = None
    gate: Gate | None = None
    """The paid or early access that is in force; None if there is none."""
    usage_control: str | None = None
    """The version can be downloaded only if this is None or "Download"."""
    status: str | None = None
    availability: str | None = None
    nsfw_level: int = 0
    previews: tuple[Preview, ...] = ()
    download_url: str | None = None
    download_count: int | None = None
    thumbs_up_count: int | None = None
    raw: str = field(default="{}", repr=False, compare=False)
    """The JSON object of the version as received from CivitAI."""

    def is_published(self, now: datetime) -> bool:
        """Whether the version is published at `now`: neither a draft, nor withdrawn, nor scheduled for later."""
        return self.status in (None, "Published") and (self.published_at is None or self.published_at <= now)


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored bytes, identified by their digest and verified at `verified_at`.

    `declared_by` is the source of the expected digest: "civitai", or "civman" if none was declared and civman computed
    it from the bytes.
    """

    sha256: Sha256
    size_bytes: int
    suffix: str
    declared_by: str
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The facts that a file's header shows. Unknown values are empty strings or None.

    Compatibility checks use these facts; `flags` contains additional ones such as "v-prediction".
    """

    kind: str = ""
    architecture: str = ""
    adapter: str = ""
    key_format: str = ""
    precision: str = ""
    rank: int | None = None
    tensor_count: int | None = None
    claimed_base: str = ""
    """The base model according to the file's metadata."""
    trigger_words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    """Contradictions between CivitAI's label, the file's metadata and its tensors, as sentences."""
    output_name: str = ""
    """The name that the trainer gave the file (`ss_output_name`), which A1111 uses in prompts."""


@dataclass(frozen=True, slots=True)
class Own:
    """The user's own annotations of a file. Updates from CivitAI never change them."""

    note: str = ""
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    rating: int | None = None
    """The user's rating of the file from 1 to 5; None if not rated."""
    is_favourite: bool = False


NOTHING_SAID = Own()
"""Empty annotations: no note, tag, trigger word or rating."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file in the library, with its metadata."""

    blob: Blob
    name: str
    """The file name without folder, valid on every file system."""
    path: str
    """The absolute path of the file."""
    origin: str
    """How the file was added to the library: "civitai" or "import"."""
    added_at: datetime
    type: ModelType = ModelType.OTHER
    type_raw: str = ""
    base_model: str | None = None
    model_id: ModelId | None = None
    version_id: VersionId | None = None
    file_id: FileId | None = None
    model_name: str = ""
    version_name: str = ""
    creator: str | None = None
    trained_words: tuple[str, ...] = ()
    alias: str | None = None
    facts: FileFacts = FileFacts()
    own: Own = NOTHING_SAID
    pins: tuple[str, ...] = ()
    """The reasons why the file must be kept ("user", "recipe …"); empty if it may be removed."""
    last_used_at: datetime | None = None
    ref: str = field(default="", compare=False)
    """The ref that civman prints for the file and that every command accepts (see `civman.domain.printed_refs`).

    The index sets it.
    """

    @property
    def trigger_words(self) -> dict[str, tuple[str, ...]]:
        """All trigger words by their source: "CivitAI", "file" (its metadata), "you"."""
        found: dict[str, tuple[str, ...]] = {}
        for source, words in (
            ("you", self.own.trigger_words),
            ("CivitAI", self.trained_words),
            ("file", self.facts.trigger_words),
        ):
            for word in words:
                found[word] = (*found.get(word, ()), source)
        return found
