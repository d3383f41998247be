"""Computes, as CivitAI does, a version's primary file, the file for a download request, and the files' names.

Source: CivitAI's public source (file preference weights, file name rules), August 2026.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import quote, urlencode

from civman.demo.demo_catalog import Catalogue, DemoFile, DemoModel, DemoVersion

_WEIGHT_TYPES = ("Model", "Pruned Model", "Diffusion Model", "UNet")
_DEFAULT_WISH = {"format": "SafeTensor", "size": "pruned", "fp": "fp16", "quantType": "Q4_K_M"}
_POINTS = {"format": 100.0, "size": 10.0, "fp": 1.0, "quantType": 0.5}
_NAME_LENGTH = 20


def metadata_of(file: DemoFile) -> dict[str, str]:
    """Return the uploader's metadata of the file under CivitAI's keys; missing values are left out."""
    said = {"format": file.format, "size": file.size, "fp": file.fp, "quantType": file.quant_type}
    return {key: value for key, value in said.items() if value is not None}


def public_files(version: DemoVersion) -> list[DemoFile]:
    """List the version's files that are visible to everyone."""
    return [file for file in version.files if file.visibility == "Public"]


def primary_file(version: DemoVersion) -> DemoFile | None:
    """Return the file that CivitAI shows as primary, or None if the version has no public file."""
    return _best(public_files(version), {})


def linked_file(catalogue: Catalogue, version: DemoVersion) -> DemoFile | None:
    """Return the VAE of another version that CivitAI lists with this version's files, or None."""
    found = catalogue.version(version.vae_version) if version.vae_version else None
    return primary_file(found[1]) if found else None


def requested_file(catalogue: Catalogue, version: DemoVersion, query: Mapping[str, str]) -> DemoFile | None:
    """Choose the file that `/api/download/models/{version}?…` sends; None if the response is 404.

    As on CivitAI, without `fileId` the file with the best score is chosen first and only then compared with the
    request. A request may therefore fail although another file matches it.
    """
    candidates = public_files(version)
    if "fileId" in query:
        return next((file for file in candidates if str(file.id) == query["fileId"]), None)
    wish = {key: query[key] for key in _POINTS if query.get(key)}
    if kind := query.get("type"):
        candidates = [file for file in candidates if file.type == kind]
        if not candidates and kind == "VAE":
            return linked_file(catalogue, version)
    best = _best(candidates, wish)
    if best is None or any(metadata_of(best).get(key) != value for key, value in wish.items()):
        return None
    return best


def download_query(version: DemoVersion, file: DemoFile) -> str:
    """Build the query of this file's download URL, which is empty for the primary file."""
    if file is primary_file(version):
        return ""
    return "?" + urlencode({"type": file.type, **metadata_of(file)}, quote_via=quote)


def computed_name(model: DemoModel, version: DemoVersion, file: DemoFile) -> str:
    """Build the file name that CivitAI shows, usually from the model's and version's names; it need not be unique."""
    model_part = _camel(model.name)
    if file.override_name:
        return file.override_name
    suffix = PurePosixPath(file.name).suffix
    if model.type == "TextualInversion" and version.trained_words:
        return f"{version.trained_words[0]}{'-neg' if file.type == 'Negative' else ''}{suffix}"
    if not model_part or model.type in ("LORA", "LoCon", "VAE") or file.type == "VAE":
        return file.name
    version_part = _camel(re.sub(re.escape(model.name.strip()), "", version.name, flags=re.IGNORECASE))
    if file.type == "Training Data":
        return f"{model_part}_{version_part}_trainingData.zip"
    marks = {"Inpainting": "-inpainting", "Pix2Pix": ".instruct-pix2pix"}
    mark = "_txt" if file.type == "Text Encoder" else marks.get(version.base_model_type or "", "")
    return f"{model_part}_{version_part}{mark}{suffix}"


def _best(candidates: list[DemoFile], wish: Mapping[str, str]) -> DemoFile | None:
    wanted = {**_DEFAULT_WISH, **wish}

    def score(file: DemoFile) -> float:
        said = metadata_of(file)
        points = sum(value if said[key] == wanted[key] else -value for key, value in _POINTS.items() if key in said)
        return 1000 + points + (1000 if file.type in _WEIGHT_TYPES else 0)

    # of files with equal scores, max returns the first one, as the site does
    return max(candidates, key=score, default=None)


def _camel(text: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", text.replace(".", ""))
    kept = ""
    for word in words:
        part = word[0].upper() + word[1:] if kept else word[0].lower() + word[1:]
        if kept and len(kept) + len(part) > _NAME_LENGTH:
            break
        kept += part
    return kept[:_NAME_LENGTH]
