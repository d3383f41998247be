"""What a file's metadata claims about the file. Claims are evidence, but not proof.

Reads kohya's `ss_…` entries and the `modelspec.…` entries of the Stability metadata standard; any content is tolerated.

Source: kohya's training scripts (names and types of `ss_` entries), the Stability model metadata standard 1.0.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from civman.domain.architecture import Architecture

A = Architecture
_MAX_JSON = 8 << 20
_MAX_TAGS = 200


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims in a file's metadata. A missing or unreadable entry is "", None or ()."""

    architecture: A = A.UNKNOWN
    base: str = ""
    """The base model as written in the file: `modelspec.architecture`, else `ss_base_model_version`."""
    title: str = ""
    output_name: str = ""
    """The name that the trainer gave the file: `ss_output_name`."""
    author: str = ""
    licence: str = ""
    description: str = ""
    prediction_type: str = ""
    """What the model predicts: "epsilon", "v", or another value as the file contains it."""
    resolution: str = ""
    network_module: str = ""
    network_args: tuple[tuple[str, str], ...] = ()
    network_dim: int | None = None
    network_alpha: float | None = None
    trained_on: str = ""
    """The name of the checkpoint that the model was trained on."""
    trigger_phrase: str = ""
    tags: tuple[tuple[str, int], ...] = ()
    """Tags of the training captions with their number of occurrences, most frequent first."""
    has_thumbnail: bool = False
    unreadable: tuple[str, ...] = ()
    """The names of entries that should contain JSON but do not."""

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The declared trigger phrase, else up to ten tags, each at least half as frequent as the most frequent tag."""
        if self.trigger_phrase:
            return tuple(word.strip() for word in self.trigger_phrase.split(",") if word.strip())
        most = self.tags[0][1] if self.tags else 0
        return tuple(word for word, count in self.tags[:10] if count * 2 >= most)


_BASES: tuple[tuple[str, A], ...] = (
    (r"stable-diffusion-xl.*refiner|sdxl.*refiner", A.SDXL_REFINER), (r"stable-diffusion-xl|^sdxl|^sd_xl", A.SDXL),
    (r"stable-diffusion-v?3|^sd[_-]?3", A.SD3), (r"stable-diffusion-v?2|^sd[_-]v?2", A.SD2),
    (r"stable-diffusion-v?1|^sd[_-]v?1", A.SD1), (r"chroma", A.CHROMA), (r"flux[._-]?2", A.FLUX2),
    (r"flux[._-]?1|^flux", A.FLUX1), (r"hunyuan[_-]?image", A.HUNYUAN_IMAGE),
    (r"hunyuan[_-]?video|framepack", A.HUNYUAN_VIDEO), (r"lumina", A.LUMINA2), (r"z[_-]?image", A.Z_IMAGE),
    (r"qwen[_-]?image", A.QWEN_IMAGE), (r"^wan", A.WAN), (r"anima", A.ANIMA),
    (r"hidream[_-]?o1", A.HIDREAM_O1), (r"hidream", A.HIDREAM),
    (r"auraflow|pony-?v7", A.AURAFLOW), (r"kolors", A.KOLORS), (r"ltx[_-]?v?2", A.LTX2), (r"ltx", A.LTX_VIDEO),
    (r"cosmos", A.COSMOS), (r"pixart", A.PIXART), (r"sana", A.SANA), (r"cascade|wurstchen", A.CASCADE),
)  # fmt: skip
"""Maps the pattern of a base model's name to its family. The first matching pattern is used."""


def claimed_architecture(text: str) -> A:
    """Return the family that a metadata entry about the base model names; UNKNOWN if it names none.

    >>> claimed_architecture("stable-diffusion-xl-v1-base/lora").value
    'sdxl'
    """
    lowered = text.strip().lower()
    return next((family for expression, family in _BASES if re.search(expression, lowered)), A.UNKNOWN)


def claims(metadata: Mapping[str, str]) -> Claims:
    """Read the claims in a file's metadata. Never raises an error, whatever the metadata contains."""
    get = metadata.get
    unreadable: list[str] = []

    def loaded(key: str) -> object:
        text = get(key, "")
        if not text or text == "None":
            return None
        try:
            return json.loads(text) if len(text) <= _MAX_JSON else None
        except (ValueError, RecursionError):
            unreadable.append(key)
            return None

    base = get("modelspec.architecture") or get("ss_base_model_version") or ""
    architecture = claimed_architecture(base)
    if architecture is A.UNKNOWN:
        architecture = claimed_architecture(get("ss_base_model_version", ""))
    arguments = loaded("ss_network_args")
    return Claims(
        architecture=architecture,
        base=base,
        title=get("modelspec.title") or get("ss_output_name") or "",
        output_name="" if get("ss_output_name") == "None" else get("ss_output_name", ""),
        author=get("modelspec.author", ""),
        licence=get("modelspec.license", ""),
        description=get("modelspec.description", ""),
        prediction_type=prediction_type(metadata),
        resolution=get("modelspec.resolution") or _resolution(get("ss_resolution", "")),
        network_module=get("ss_network_module", ""),
        network_args=tuple((str(k), str(v)) for k, v in arguments.items()) if isinstance(arguments, dict) else (),
        network_dim=_whole(get("ss_network_dim", "")),
        network_alpha=_number(get("ss_network_alpha", "")),
        trained_on=get("ss_sd_model_name", ""),
        trigger_phrase=get("modelspec.trigger_phrase", ""),
        tags=_tags(loaded("ss_tag_frequency")),
        has_thumbnail="modelspec.thumbnail" in metadata,
        unreadable=tuple(unreadable),
    )


def prediction_type(metadata: Mapping[str, str]) -> str:
    """Return what the model predicts, according to its metadata.

    Returns "epsilon", "v", any other value as the file contains it, or "" if there is none.
    """
    said = metadata.get("modelspec.prediction_type", "").strip().lower()
    if said:
        return {"eps": "epsilon", "v_prediction": "v", "v-prediction": "v"}.get(said, said)
    base = metadata.get("ss_base_model_version", "").lower()
    flagged = metadata.get("ss_v_parameterization", "").lower() == "true"
    return "v" if flagged or base.endswith("_v") else ""


def _resolution(text: str) -> str:
    numbers = re.findall(r"\d{1,6}", text[:60])
    return "x".join(numbers[:2])


def _tags(value: object) -> tuple[tuple[str, int], ...]:
    """Add up the counts in `{folder: {tag: count}}`; `{tag: count}` is also accepted."""
    counts: Counter[str] = Counter()
    folders = value.values() if isinstance(value, dict) else ()
    flat = {tag: count for tag, count in value.items() if type(count) is int} if isinstance(value, dict) else {}
    for folder in [*folders, flat]:
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if type(count) is int and count > 0 and (word := " ".join(str(tag).split())):
                counts[word] += count
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(ordered[:_MAX_TAGS])


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,7}", text.strip()) else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,7}(\.\d{1,9})?", text.strip()) else None
