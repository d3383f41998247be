"""The site's rules for generation data, as strict as they are: one thing wrong and nothing is kept.

Written anew from the reference (../shared/reference/civitai-api.md, 10.2 and 10.3), and stricter where the site is
merely unpredictable; shares no code with what it judges.
"""

import json
import re
from dataclasses import dataclass, field

_RENAMED = {"Seed": "seed", "CFG scale": "cfgScale", "Sampler": "sampler", "Steps": "steps", "Clip skip": "clipSkip"}
_NUMBERS = ("seed", "cfgScale", "steps", "clipSkip")
_JS_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
JS_SPACE = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
_TAG = re.compile(r"<(lora|hypernet):([a-zA-Z0-9_.\-]+):([0-9.]+)>")


class DiscardedError(Exception):
    """The site would throw all of it away, or not see it for what it is."""


@dataclass
class Meta:
    prompt: str
    negative: str
    values: dict[str, object]
    hashes: dict[str, str] = field(default_factory=dict)
    versions: list[tuple[int, float | None]] = field(default_factory=list)
    resources: list[dict[str, object]] = field(default_factory=list)


def judge(text: str) -> Meta:
    """What the site keeps. Raises: DiscardedError."""
    lines = [line for line in text.split("\n") if line.strip(JS_SPACE)]
    if any(line.startswith(("Template: ", "Negative Template: ")) for line in lines):
        raise DiscardedError("a line that begins a template")
    found = [line for line in lines if line.startswith("Steps: ")]
    if len(found) != 1:
        raise DiscardedError(f"{len(found)} lines of details")
    if found[0] != lines[-1]:
        raise DiscardedError("details are not the last line")
    details = found[0]
    if any(key in details for key in ("Resources: ", "Hashed prompt: ", "Hashed Negative prompt: ")):
        raise DiscardedError("a word that ends the details")
    hashes, details = _cut(details, r", Hashes:\s*({[^}]+})")
    known, details = _cut(details, r", Civitai resources:\s*(\[\{.*?\}\])")
    meta = Meta("", "", _details(details))
    if hashes is not None:
        if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
            raise DiscardedError("hashes are not text")
        meta.hashes = hashes
    _versions(meta, known)
    for key in _NUMBERS:
        if key in meta.values and not _JS_NUMBER.fullmatch(str(meta.values[key])):
            raise DiscardedError(f"{key} is no number: {meta.values[key]!r}")
    if not isinstance(meta.values.get("sampler"), str):
        raise DiscardedError("no sampler")
    _prompts(meta, [line for line in lines if line != found[0]])
    _resources(meta)
    return meta


def stored_strengths(meta: Meta, versions: dict[str, int]) -> dict[int, float | None]:
    """The strength the site's database keeps for each version; `versions` are the ids it knows hashes by.

    What comes from `Lora hashes` wins over `Civitai resources`, and is 1 where no tag gave it a weight.
    """
    strengths = dict(meta.versions)
    for resource in meta.resources:
        if (version := versions.get(str(resource.get("hash")))) is not None:
            weight = resource.get("weight", 1.0)
            assert isinstance(weight, float)
            strengths[version] = weight
    return strengths


def linked_vaes(entries: list[dict[str, object]]) -> list[object]:
    """The VAEs among `Civitai resources` that the site links: named by type, unless an AIR names it "vae" again."""
    return [entry["modelVersionId"] for entry in entries if entry["type"] == "VAE" and "air" not in entry]


def _cut(line: str, pattern: str) -> tuple[object, str]:
    match = re.search(pattern, line)
    if match is None:
        return None, line
    try:
        return json.loads(match[1]), line.replace(match[0], "", 1)
    except ValueError as error:
        raise DiscardedError(f"broken JSON: {match[1]}") from error


def _details(line: str) -> dict[str, object]:
    """One character at a time, as there: quotes open an object, and nothing escapes them."""
    values: dict[str, object] = {}
    key = word = ""
    is_quoted = False
    for letter in line:
        if letter == '"':
            if is_quoted:
                values[key] = _details(word.strip(JS_SPACE))
                key = ""
            is_quoted = not is_quoted
        elif letter == ":" and not is_quoted:
            name = word.strip(JS_SPACE)
            key, word = _RENAMED.get(name, name), ""
        elif letter == "," and not is_quoted:
            if key:
                values[key] = word.strip(JS_SPACE)
            key = word = ""
        else:
            word += letter
    # A1111 writes a checkpoint's hash in brackets after its name: plain text, like all without , : and "
    bare = re.sub(r" \[[0-9a-f]{10}\](?=,|$)", "", line)
    if is_quoted or "{" in bare or "[" in bare:
        raise DiscardedError("details that are left open")
    if key:
        values[key] = word.strip(JS_SPACE)
    return values


def _versions(meta: Meta, known: object) -> None:
    for entry in known if isinstance(known, list) else []:
        version, weight = entry.get("modelVersionId"), entry.get("weight")
        if "air" in entry:
            match = re.fullmatch(r"urn:air:[\w-]+:[\w-]+:civitai:\d+@(\d+)", entry["air"])
            if match is None:
                raise DiscardedError("an AIR that is none")
            version = int(match[1])
        if isinstance(version, bool) or not isinstance(version, int):
            raise DiscardedError("a resource without a version")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise DiscardedError("a weight that is no number")
        if not isinstance(entry.get("type", ""), str):
            raise DiscardedError("a type that is no text")
        meta.versions.append((version, weight))


def _prompts(meta: Meta, lines: list[str]) -> None:
    parts = [part.strip(JS_SPACE) for part in "\n".join(lines).split("Negative prompt:")]
    if len(parts) > 2:
        raise DiscardedError("more than one negative prompt")
    meta.prompt, meta.negative = parts[0], parts[1] if len(parts) == 2 else ""


def _resources(meta: Meta) -> None:
    meta.resources = [
        {"type": kind, "name": name, "weight": float(weight)} for kind, name, weight in _TAG.findall(meta.prompt)
    ]
    listed = meta.values.pop("Lora hashes", {})
    if not isinstance(listed, dict):
        raise DiscardedError("LoRA hashes without quotes")
    for name, digest in listed.items():
        if not isinstance(digest, str):
            raise DiscardedError("a LoRA hash that is no text")
        meta.hashes[f"lora:{name}"] = digest
        same = [resource for resource in meta.resources if resource["name"] == name]
        if same:
            same[0]["hash"] = digest
        else:
            meta.resources.append({"type": "lora", "name": name, "hash": digest})
    if "Model" in meta.values and "Model hash" in meta.values:
        meta.hashes.setdefault("model", str(meta.values["Model hash"]))
