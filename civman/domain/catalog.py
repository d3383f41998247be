"""CivitAI's three levels (model, version, file) as civman sees them, and what the library holds.

CivitAI's sets are open: an unknown model type is `ModelType.OTHER` with the raw text kept beside it, and every
field that CivitAI may leave out is optional here. Times are aware, in UTC. Sizes are bytes.

Source: CivitAI's public REST API, version 1.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

from civman.domain.digests import Hashes, Sha256

ModelId = NewType("ModelId", int)
VersionId = NewType("VersionId", int)
FileId = NewType("FileId", int)


class ModelType(StrEnum):
    """Kinds of model, in CivitAI's spelling (`types=` wants exactly this case)."""

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
        """The member whose value is `raw` in any case, or OTHER."""
        wanted = (raw or "").casefold()
        return next((member for member in cls if member.value.casefold() == wanted), cls.OTHER)

    @property
    def is_adapter(self) -> bool:
        """Whether it changes a checkpoint's weights rather than standing alone."""
        return self in (ModelType.LORA, ModelType.LOCON, ModelType.DORA)


class Scan(StrEnum):
    """CivitAI's verdict on a file."""

    PENDING = "Pending"
    SUCCESS = "Success"
    DANGER = "Danger"
    ERROR = "Error"
    UNKNOWN = "Unknown"

    @classmethod
    def of(cls, raw: str | None) -> "Scan":
        """The member named `raw`; UNKNOWN where CivitAI says nothing or something new."""
        return next((member for member in cls if member.value == raw), cls.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Licence:
    """What the creator allows; None where CivitAI did not say.

    `commercial_use` holds CivitAI's words ("Image", "RentCivit", "Rent", "Sell"), lower permissions that an old
    single value implied are spelled out; empty means none.
    """

    credit_required: bool | None = None
    commercial_use: tuple[str, ...] | None = None
    derivatives_allowed: bool | None = None
    different_licence_allowed: bool | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model page without its versions. `/model-versions/*` answers fill only the first fields."""

    id: ModelId
    name: str
    type: ModelType
    type_raw: str
    nsfw: bool = False
    nsfw_level: int = 0
    """Bit mask over its pictures: 1 PG, 2 PG-13, 4 R, 8 X, 16 XXX, 32 blocked; 0 unrated."""
    real_person: bool = False
    mode: str | None = None
    """None when normal, else "Archived" or "TakenDown"."""
    creator: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    """HTML as the creator wrote it."""
    licence: Licence = Licence()
    download_count: int | None = None
    thumbs_up_count: int | None = None
    is_complete: bool = True
    """False where the answer described a version and gave only a few words on its model."""
    raw: str = field(default="{}", repr=False, compare=False)
    """The JSON object as received, without its versions."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Paid or early access that is in force. `ends_at` None and not permanent: no end set yet."""

    permanent: bool = False
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture or clip CivitAI shows for a version."""

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
    """CivitAI's word: "Model", "Pruned Model", "VAE", "Config", "Training Data" …"""
    size_bytes: int | None
    hashes: Hashes = Hashes()  # noqa: RUF009  # frozen: sharing one is safe
    is_primary: bool = False
    is_linked: bool = False
    """It belongs to another version (a shared VAE): its id does not work in this version's download address."""
    format: str | None = None
    """"SafeTensor", "PickleTensor", "GGUF", "Other" … (CivitAI's claim; trust the suffix and the bytes)."""
    precision: str | None = None
    size_class: str | None = None
    """"full" or "pruned"."""
    quant_type: str | None = None
    pickle_scan: Scan = Scan.UNKNOWN
    virus_scan: Scan = Scan.UNKNOWN
    scan_message: str | None = None
    download_url: str | None = None
    raw: str = field(default="{}", repr=False, compare=False)

    @property
    def suffix(self) -> str:
        """Last part of the name from the dot on, lower case: ".safetensors"; "" where there is none."""
        stem, dot, tail = self.name.rpartition(".")
        return f".{tail.lower()}" if dot and stem and tail.isalnum() else ""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, with its files."""

    id: VersionId
    model: Model
    name: str
    base_model: str | None
    """CivitAI's label, verbatim ("SDXL 1.0", "Pony"): the uploader's word."""
    files: tuple[ModelFile, ...] = ()
    base_model_type: str | None = None
    published_at: datetime | None = None
    trained_words: tuple[str, ...] = ()
    """Trigger words, split at commas where the creator wrote several in one entry."""
    description: str | None = None
    air: str | None = None
    gate: Gate | None = None
    """None: free to download as far as the answer tells."""
    usage_control: str | None = None
    """Anything but None or "Download": cannot be downloaded."""
    status: str | None = None
    availability: str | None = None
    nsfw_level: int = 0
    previews: tuple[Preview, ...] = ()
    download_url: str | None = None
    download_count: int | None = None
    thumbs_up_count: int | None = None
    raw: str = field(default="{}", repr=False, compare=False)
    """The JSON object as received."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes under their digest, proven when `verified_at` was written.

    `declared_by` says whose digest the bytes were compared with: "civitai", or "civman" where nobody declared one
    and the digest is simply what the bytes hash to.
    """

    sha256: Sha256
    size_bytes: int
    suffix: str
    declared_by: str
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file shows of itself (filled from its header; empty text and None where nothing is known).

    These are the columns on which compatibility rests; `flags` holds further words such as "v-prediction".
    """

    kind: str = ""
    architecture: str = ""
    adapter: str = ""
    key_format: str = ""
    precision: str = ""
    rank: int | None = None
    tensor_count: int | None = None
    claimed_base: str = ""
    """What the file's own metadata says about its base."""
    trigger_words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    """Contradictions between what CivitAI says, what the metadata says and what the tensors show, in words."""


@dataclass(frozen=True, slots=True)
class Own:
    """What the user says of a file: never CivitAI's word, never lost to an update."""

    note: str = ""
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    rating: int | None = None
    """1 to 5; None: not rated."""
    is_favourite: bool = False


NOTHING_SAID = Own()
"""The user has said nothing."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that the library holds and knows."""

    blob: Blob
    name: str
    """File name without any folder, fit for any file system."""
    path: str
    """Where the bytes are, absolute."""
    origin: str
    """"civitai" or "import"."""
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
    """Why its bytes must stay ("user", "recipe …"); empty: they may go."""
    last_used_at: datetime | None = None

    @property
    def trigger_words(self) -> dict[str, tuple[str, ...]]:
        """All trigger words, and who says so of each: "CivitAI", "file" (its metadata), "you"."""
        found: dict[str, tuple[str, ...]] = {}
        for source, words in (
            ("you", self.own.trigger_words),
            ("CivitAI", self.trained_words),
            ("file", self.facts.trigger_words),
        ):
            for word in words:
                found[word] = (*found.get(word, ()), source)
        return found
