"""Identify a model file from its header alone: `identify`, and `facts`, which compares the result with other sources.

This module defines the order of the questions (is it an adapter, a diffusion model, something else?); the rules that
answer them are listed in `civman.domain.identification.rule_tables`. The tensors decide. The file's metadata only
chooses among the families that the tensors allow. If the metadata contradicts the tensors, the contradiction is
reported and the metadata is ignored.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from civman.domain.adapters.adapter_kinds import input_width
from civman.domain.adapters.adapter_tensors import Delta, Deltas, deltas_of
from civman.domain.adapters.ip_adapters import ip_adapter_kind
from civman.domain.adapters.module_names import parts_of
from civman.domain.adapters.spellings import means_the_only_encoder
from civman.domain.architecture import (
    Adapter,
    Architecture,
    Confidence,
    Identity,
    KeyFormat,
    Kind,
    Precision,
)
from civman.domain.base_models import architectures_of
from civman.domain.catalog import FileFacts
from civman.domain.files.header import Header
from civman.domain.files.tokenizer_files import NAMES, TITLES, TOKENS
from civman.domain.files.weight_forms import weight_form
from civman.domain.identification import rule_tables, rules
from civman.domain.identification.claims import Claims, claims
from civman.domain.identification.rules import Look, Rule, Shape
from civman.domain.vision_encoders import read_vision_encoder

_FAMILIES = {
    "F64": Precision.FP64, "F32": Precision.FP32, "F16": Precision.FP16, "BF16": Precision.BF16,
    "F8_E4M3": Precision.FP8, "F8_E5M2": Precision.FP8, "F8_E4M3FNUZ": Precision.FP8, "F8_E5M2FNUZ": Precision.FP8,
    "F4": Precision.FP4, "I8": Precision.INT8, "U8": Precision.INT8,
}  # fmt: skip


def identify(header: Header, said: Claims | None = None) -> Identity:
    """Identify the file; anything that cannot be determined is set to unknown.

    `said` are the claims in the file's metadata, if they have already been read.
    """
    shapes = header.shapes
    if shapes and shapes.keys() <= TITLES.keys():
        return _tokenizer(header)
    said = said or claims(header.metadata)
    base = Identity(
        precision=_precision(header.elements),
        tensor_count=len(shapes),
        parameter_count=header.parameter_count,
    )
    # check for IP-Adapters before LoRAs, because some IP-Adapters also contain LoRAs
    if any(name.startswith("ip_adapter.") for name in shapes):
        look = Look.at(shapes.items())
        if rule := rules.first([rule for rule in rule_tables.PARTS if rule.kind is Kind.IP_ADAPTER], look):
            words = _words(base.precision)
            base = replace(base, kind=Kind.IP_ADAPTER, weights=words, variant=ip_adapter_kind(shapes))
            return _spoken(base, rule, said)
    deltas = deltas_of(header)
    if deltas.modules and len(deltas.loose) <= len(deltas.modules):
        # determine one precision for the whole file, because sorting its tensors into parts would double the time
        return _adapter(replace(base, weights=_words(base.precision)), shapes, deltas, said)
    base = replace(base, weights=weight_form(header.tensors).words)
    for question in (_embedding, _control, _diffusion_model, _other_part):
        if found := question(base, header, said):
            return found
    reasons = ["no rule recognises the tensor names"]
    if said.architecture is not Architecture.UNKNOWN:
        reasons.append(f"the file's metadata says {said.base}, which no tensor confirms")
    return replace(base, reasons=tuple(reasons))


def _tokenizer(header: Header) -> Identity:
    tokens = header.metadata.get(TOKENS, "")
    name = next(iter(header.shapes))
    counted = f" with {int(tokens):,} tokens" if tokens else ""
    return Identity(
        kind=Kind.TOKENIZER, variant=f"{NAMES[name]} {tokens}".rstrip(), confidence=Confidence.CERTAIN,
        rules=("tokenizer",), reasons=(f"{TITLES[name]}{counted}",), tensor_count=len(header.shapes),
    )  # fmt: skip


def _words(precision: Precision) -> str:
    return "" if precision is Precision.UNKNOWN else str(precision)


def _adapter(base: Identity, shapes: Mapping[str, Shape], deltas: Deltas, said: Claims) -> Identity:
    if any(name == "lora_controlnet" or name.startswith("lllite_") for name in shapes):
        special = rules.first(
            [rule for rule in rule_tables.PARTS if rule.id.startswith("control-l")], Look.at(shapes.items())
        )
        if special:
            return _spoken(replace(base, kind=special.kind or Kind.UNKNOWN), special, said)
    kinds = Counter(delta.kind for delta in deltas.modules)
    kind = max(kinds, key=lambda item: (kinds[item], str(item)))
    flags = ["conv"] if any(delta.is_conv for delta in deltas.modules) else []
    flags += [f"also-{other}" for other in sorted(kinds) if other is not kind]
    flags += ["bundled-embeddings"] if deltas.bundled else []
    flags += ["with-base-weights"] if deltas.of_base else []
    flags += ["damaged-modules"] if not all(delta.is_whole for delta in deltas.modules) else []
    look = _adapter_look(deltas.modules)
    ranks = Counter(delta.rank for delta in deltas.modules if delta.rank is not None)
    common = max(ranks, key=lambda item: (ranks[item], item), default=None)
    spread = () if common is None else tuple(dict.fromkeys((common, min(ranks), max(ranks))))
    widths = {size for name in look.found(rule_tables.CROSS_KV) for shape in look.shapes[name] for size in shape[1:2]}
    identity = replace(
        base, kind=Kind.ADAPTER, adapter=kind, ranks=spread, flags=tuple(flags), module_count=len(deltas.modules),
        key_format=_adapter_format(shapes, deltas.modules), context_width=max(widths, default=None),
        has_text_encoder=look.has(r"^:te\d$"), has_diffusion_model=look.has(r"^(?!:)"),
        reasons=(f"{len(deltas.modules)} modules with tensors of the kind {kind}",),
    )  # fmt: skip
    rule = rules.first(rule_tables.ADAPTED, look)
    if rule is not None:
        return _spoken(identity, rule, said)
    if said.architecture is Architecture.UNKNOWN:
        return identity
    words = f"no rule recognises the modules that the adapter changes; the file's metadata says {said.base}"
    return replace(
        identity, architecture=said.architecture, confidence=Confidence.LIKELY, reasons=(*identity.reasons, words)
    )


_FLAT = (Adapter.LOHA, Adapter.LOKR)
_CONTEXT = ("_to_q", "_to_k", "_to_v")


def _adapter_look(deltas: Iterable[Delta]) -> Look:
    items: list[tuple[str, Shape]] = []
    parts: set[str] = set()
    for delta in deltas:
        part, path = delta.part, delta.path
        parts.add(part)
        # if only one width is known (OFT, IA3), use it for both sides of a text encoder's projections, which are square
        shape = delta.shape or (delta.sides * 2 if part != "unet" and path.endswith("_proj") else ())
        if not shape and path.endswith(_CONTEXT) and (width := input_width(delta.shapes)):
            shape = (0, width)
        if len(shape) == 2 and delta.kind in _FLAT and path.endswith(("_proj_in", "_proj_out")):
            # a 1x1 convolution may also be stored as a matrix, so this shape does not distinguish SD 1.x from 2.x
            shape = ()
        items.append((path if part == "unet" else f":{part}_{path}", shape))
        if means_the_only_encoder(delta.module):
            parts |= {"single-text", "only-text"}  # kohya numbers the text encoders only if a model has several
        elif delta.module.startswith("text_encoder."):
            parts.add("single-text")
        if delta.module.startswith("transformer_blocks."):
            parts.add("bare")
        if path.startswith(("input_blocks_1_1_", "input_blocks_2_1_", "down_blocks_0_attentions_")):
            parts.add("level0")
    if parts & {"te2", "te3", "te4"}:
        parts -= {"single-text", "only-text"}
    return Look.at([*items, *((f":{part}", ()) for part in sorted(parts - {"unet"}))])


def _adapter_format(shapes: Mapping[str, Shape], deltas: tuple[Delta, ...]) -> KeyFormat:
    names = [delta.module for delta in deltas]
    if any(".processor." in name and "_lora" in name for name in shapes) and any("double_blocks" in n for n in names):
        return KeyFormat.XLABS
    if any(name.startswith(("lora_", "oft_", "lycoris_", "lllite_")) for name in names):
        return KeyFormat.KOHYA
    bfl = any("double_blocks." in name or "single_blocks." in name for name in names)
    if any(name.startswith(("diffusion_model.", "model.diffusion_model.")) for name in names):
        return KeyFormat.BFL if bfl else KeyFormat.COMFY
    return KeyFormat.BFL if bfl else KeyFormat.DIFFUSERS


_VECTORS = frozenset({"emb_params", "clip_l", "clip_g", "t5xxl"})


def _embedding(base: Identity, header: Header, _: Claims) -> Identity | None:
    """Recognise an embedding: a file with few tensors, which have few rows."""
    # the oldest embeddings contain the token's id in addition to the vectors
    shapes = {name: shape for name, shape in header.shapes.items() if not name.startswith("string_to_token.")}
    small = 0 < len(shapes) <= 4 and all(
        1 <= len(shape) <= 2 and 0 < shape[-1] <= 8192 and math.prod(shape[:-1]) <= 512 for shape in shapes.values()
    )
    known = {name for name in shapes if name in _VECTORS or name.startswith("string_to_param")}
    if not small or not (known or (len(shapes) == 1 and "." not in next(iter(shapes)))):
        return None
    widths = tuple(sorted(shape[-1] for shape in shapes.values()))
    by_width = {
        (768,): Architecture.SD1, (1024,): Architecture.SD2, (768, 1280): Architecture.SDXL, (1280,): Architecture.SDXL,
        (768, 1280, 4096): Architecture.SD3,
    }  # fmt: skip
    architecture = by_width.get(widths, Architecture.UNKNOWN)
    if not known and architecture is Architecture.UNKNOWN:
        return None
    sure = Confidence.CERTAIN if known and architecture is not Architecture.UNKNOWN else Confidence.LIKELY
    return replace(
        base, kind=Kind.EMBEDDING, architecture=architecture, text_widths=widths, rules=("embedding",),
        confidence=sure if architecture is not Architecture.UNKNOWN else Confidence.NONE,
        reasons=(f"embedding vectors, {' and '.join(map(str, widths))} wide",),
    )  # fmt: skip


_CONTROL = (
    "control_model.", "controlnet_", "input_hint_block.", "zero_convs.", "control_layers.", "control_blocks.",
    "ctrl_conv_in.",
)  # fmt: skip
_CONTROL_RULES = frozenset(
    rule.id for rule in rule_tables.PARTS if rule.id.startswith(("controlnet-", "unet-with-", "sparsectrl"))
)


def _control(base: Identity, header: Header, said: Claims) -> Identity | None:
    shapes = header.shapes
    if not any(name.startswith(_CONTROL) for name in shapes):
        return None
    ldm = any(name.startswith("control_model.") for name in shapes)
    inner = {name.removeprefix("control_model."): shape for name, shape in shapes.items()}
    rule = rules.first([rule for rule in rule_tables.PARTS if rule.id in _CONTROL_RULES], Look.at(inner.items()))
    if rule is None:
        return None
    form = KeyFormat.LDM if ldm or "input_blocks.0.0.weight" in inner else KeyFormat.DIFFUSERS
    return _spoken(replace(base, kind=rule.kind or Kind.CONTROLNET, key_format=form), rule, said)


def _diffusion_model(base: Identity, header: Header, said: Claims) -> Identity | None:
    shapes = header.shapes
    backbone, texts = parts_of(header)
    look = Look.at(backbone.items())
    rule = rules.first(rule_tables.BACKBONES, look)
    if rule is None:
        return None
    roots = {name.split(".", 1)[0] for name in shapes}
    cross = {size for name in look.found(rule_tables.CROSS) for shape in look.shapes[name] for size in shape[1:2]}
    identity = replace(
        base, kind=Kind.CHECKPOINT, key_format=_full_format(rule.says, backbone, shapes),
        has_diffusion_model=True, has_vae=bool(roots & {"first_stage_model", "vae"}),
        has_text_encoder=bool(texts) or bool(roots & {"text_encoders", "cond_stage_model", "conditioner"}),
        text_widths=_text_widths(texts), context_width=max(cross, default=None),
        latent_channels=_latent_channels(rule, look),
    )  # fmt: skip
    identity = _spoken(identity, rule, said)
    member = rules.first([rule for rule in rule_tables.VARIANTS if rule.says is identity.architecture], look)
    if member:
        identity = _also(replace(identity, variant=member.variant), member)
    for flag in rule_tables.FLAGS:
        if flag.says in (Architecture.UNKNOWN, identity.architecture) and flag.holds(look):
            identity = _also(identity, flag)
    whole = Look.names(shapes)
    for mark in rule_tables.MARKS:
        if mark.holds(whole):
            identity = _also(identity, mark)
    if said.prediction_type == "v" and "v-prediction" not in identity.flags:
        words = (*identity.reasons, "the file's metadata says v-prediction")
        identity = replace(identity, flags=(*identity.flags, "v-prediction"), reasons=words)
    return identity


def _latent_channels(rule: Rule, look: Look) -> int | None:
    """Read the number of latent channels from the tensors that `LATENT` lists; None if these do not show it."""
    for spoken, name, axis, pixels in rule_tables.LATENT:
        if rule.id in spoken or rule.says in spoken:
            sizes = {shape[axis] for found in look.found(name) for shape in look.shapes[found] if len(shape) > 1}
            return sizes.pop() // pixels if len(sizes) == 1 else None
    return None


def _other_part(base: Identity, header: Header, said: Claims) -> Identity | None:
    inner = {
        name.removeprefix("first_stage_model.").removeprefix("vae."): shape for name, shape in header.shapes.items()
    }
    look = Look.at(inner.items())
    if rule := rules.first(rule_tables.VAES, look):
        return _spoken(_autoencoder(base, rule, look, inner), rule, said)
    rule = rules.first(rule_tables.PARTS, look)
    if rule is None:
        return None
    encoder = read_vision_encoder(inner) if rule.kind is Kind.CLIP_VISION else None
    variant = encoder.slug if encoder is not None else ""
    identity = _spoken(replace(base, kind=rule.kind or Kind.UNKNOWN, variant=variant), rule, said)
    scale = upscaler_scale(rule.variant, inner) if rule.kind is Kind.UPSCALER else None
    return replace(identity, variant=f"{rule.variant} x{scale}") if scale else identity


_LATENT_IN = ("decoder.conv_in.weight", "decoder.conv_in.conv.weight", "decoder.conv1.weight")
_TINY_IN = r"^decoder\.layers\.#\.weight$"
_RISES = r"^decoder\.up(_blocks)?\.#\.(upsample|upsamplers\.#)\.(conv\.)?conv\.weight$"
_TOLD_BY_LEVELS = frozenset({
    Architecture.SD, Architecture.FLUX1, Architecture.FLUX2, Architecture.COGVIDEOX, Architecture.HUNYUAN_VIDEO,
})  # fmt: skip
"""Autoencoders whose number of levels determines the downscaling factor, because each level upscales by two."""


def _autoencoder(base: Identity, rule: Rule, look: Look, tensors: Mapping[str, Shape]) -> Identity:
    diffusers = look.has(r"^(de|en)coder\.(mid_block|up_blocks|down_blocks)\.")
    form = KeyFormat.DIFFUSERS if diffusers else KeyFormat.LDM
    if form is KeyFormat.LDM and rule.says in (Architecture.FLUX1, Architecture.FLUX2):
        form = KeyFormat.BFL
    heads = [tensors[name] for name in _LATENT_IN if name in tensors]
    channels = {shape[1] for shape in heads[:1] if len(shape) > 1}
    if rule.kind is Kind.TINY_VAE:
        channels = {shape[1] for name in look.found(_TINY_IN) for shape in look.shapes[name]} - {64}
    # one level does not upscale: level 0 in LDM's numbering, the last level in diffusers' numbering
    rises = [look.tops[pattern] for pattern in look.found(_RISES)] if rule.says in _TOLD_BY_LEVELS else []
    scale = 2 ** (max(rises) + (1 if diffusers else 0)) if rises and max(rises) < 8 else None
    return replace(
        base, kind=rule.kind or Kind.VAE, key_format=form, downscale=scale,
        latent_channels=channels.pop() if len(channels) == 1 else None,
    )  # fmt: skip


def upscaler_scale(architecture: str, tensors: Mapping[str, Shape]) -> int | None:
    """Return an upscaler's scale factor; None if the tensors' shapes do not show it.

    Source: the published models' code (ESRGAN's two layouts, SwinIR's and HAT's pixel shuffle, SRVGG's last layer).
    """

    def size(name: str, axis: int) -> int:
        shape = tensors.get(name, ())
        return shape[axis] if len(shape) > axis else 0

    def whole_root(number: float) -> int | None:
        root = round(math.sqrt(number)) if number > 0 else 0
        return root if root and root * root == number else None

    if architecture == "esrgan" and (channels := size("conv_first.weight", 1)):
        folded = whole_root(channels / 3)
        rises = sum(f"conv_up{number}.weight" in tensors for number in (1, 2, 3))
        rises = rises or sum(f"upconv{number}.weight" in tensors for number in (1, 2, 3))
        return 2**rises // folded if folded and 2**rises % folded == 0 else None
    if architecture == "esrgan":
        layers = [int(name.split(".")[1]) for name in tensors if re.fullmatch(r"model\.\d{1,2}\.weight", name)]
        return 2 ** ((max(layers) - 4) // 3) if layers and max(layers) in (4, 7, 10, 13) else None
    if architecture in ("swinir", "hat"):
        stages = [name for name in tensors if re.fullmatch(r"upsample\.\d{1,2}\.weight", name)]
        if "conv_before_upsample.0.weight" not in tensors:
            return whole_root(size("upsample.0.weight", 0) / 3)
        rises = sum(f"conv_up{number}.weight" in tensors for number in (1, 2, 3))
        return 3 if any(size(name, 0) == 9 * size(name, 1) for name in stages) else 2 ** (len(stages) + rises)
    if architecture == "compact":
        last = max((int(name.split(".")[1]) for name in tensors if name.split(".")[1].isdecimal()), default=0)
        return whole_root(size(f"body.{last}.weight", 0) / 3)
    return None


def _spoken(identity: Identity, rule: Rule, said: Claims) -> Identity:
    """Add the result of a matching rule to the identity.

    If several families have the same tensors, the metadata chooses among them.
    """
    architecture, why, also = rule.says, [rule.why], rule.also
    confidence = Confidence.LIKELY if rule.also or rule.flag == "thin" else Confidence.CERTAIN
    if said.architecture in rule.also:
        architecture = said.architecture
        also = tuple(family for family in (rule.says, *rule.also) if family not in (architecture, Architecture.UNKNOWN))
        why.append(f"the file's metadata says {said.base}")
    elif rule.also:
        why.append(f"files of {', '.join(rule.also)} look the same")
    if architecture is Architecture.UNKNOWN:
        confidence = Confidence.NONE
    flags = (*identity.flags, rule.flag) if rule.flag else identity.flags
    return replace(
        identity, architecture=architecture, confidence=confidence, variant=rule.variant or identity.variant,
        also=also, flags=flags, rules=(*identity.rules, rule.id), reasons=(*identity.reasons, "; ".join(why)),
    )  # fmt: skip


def _also(identity: Identity, rule: Rule) -> Identity:
    flags = (*identity.flags, rule.flag) if rule.flag else identity.flags
    return replace(identity, flags=flags, rules=(*identity.rules, rule.id), reasons=(*identity.reasons, rule.why))


def _full_format(family: Architecture, backbone: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> KeyFormat:
    if any(name.startswith(("input_blocks.", "output_blocks.")) for name in backbone):
        return KeyFormat.LDM
    if any(name.startswith(("model.diffusion_model.", "diffusion_model.")) for name in shapes):
        return KeyFormat.COMFY
    if family in (Architecture.FLUX1, Architecture.FLUX2, Architecture.CHROMA) and any(
        name.startswith("double_blocks.") for name in backbone
    ):
        return KeyFormat.BFL
    marks = ("down_blocks.", "single_transformer_blocks.", "time_text_embed.", "condition_embedder.", "adaln_single.")
    if family is Architecture.QWEN_IMAGE:
        return KeyFormat.ORIGINAL
    return KeyFormat.DIFFUSERS if any(name.startswith(marks) for name in backbone) else KeyFormat.ORIGINAL


def _text_widths(texts: Mapping[str, Mapping[str, Shape]]) -> tuple[int, ...]:
    widths = [
        shape[1]
        for part, tensors in sorted(texts.items())
        if part != "te3"
        for name, shape in tensors.items()
        if name.endswith(("token_embedding.weight",)) and len(shape) == 2
    ]
    return tuple(sorted(widths))


def _precision(elements: Mapping[str, int]) -> Precision:
    """Return the type of at least nine tenths of the weights, by number of elements; MIXED if there is none."""
    counts: Counter[Precision] = Counter()
    for dtype, count in elements.items():
        if dtype in _FAMILIES:
            counts[_FAMILIES[dtype]] += count
    total = sum(counts.values())
    if not total:
        return Precision.UNKNOWN
    most, count = counts.most_common(1)[0]
    return most if count * 10 >= total * 9 else Precision.MIXED


def facts(header: Header, civitai_base_model: str | None = None) -> FileFacts:
    """Collect what the index stores about a file from its tensors, its metadata and CivitAI's label.

    `conflicts` describes each contradiction between these sources; the tensors take precedence.
    """
    said = claims(header.metadata)
    return facts_of(identify(header, said), said, civitai_base_model)


def facts_of(identity: Identity, said: Claims, civitai_base_model: str | None) -> FileFacts:
    """Collect the same facts as `facts` does, for a file that has already been identified."""
    flags = identity.flags
    if identity.kind is Kind.CHECKPOINT:
        lacking = (("no-text-encoder", identity.has_text_encoder), ("no-vae", identity.has_vae))
        flags = (*flags, *(name for name, has in lacking if not has))
    return FileFacts(
        kind=str(identity.kind),
        architecture="" if identity.architecture is Architecture.UNKNOWN else str(identity.architecture),
        adapter=str(identity.adapter) if identity.adapter else "",
        key_format="" if identity.key_format is KeyFormat.UNKNOWN else str(identity.key_format),
        precision="" if identity.precision is Precision.UNKNOWN else str(identity.precision),
        rank=identity.rank,
        tensor_count=identity.tensor_count,
        claimed_base=said.base,
        trigger_words=said.trigger_words,
        flags=(*flags, identity.variant) if identity.variant else flags,
        conflicts=conflicts(identity, said, civitai_base_model),
        output_name=said.output_name,
    )


def conflicts(identity: Identity, said: Claims, label: str | None) -> tuple[str, ...]:
    """Describe contradictions between the tensors, the file's metadata and CivitAI's label, one sentence for each."""
    found: list[str] = []
    family = identity.architecture
    shown = family not in (Architecture.UNKNOWN, Architecture.SD) and identity.kind is not Kind.VAE
    labelled = architectures_of(label)
    if shown and labelled and family not in labelled:
        found.append(f"CivitAI says {label}, but the tensors show {family}")
    if shown and said.architecture not in (Architecture.UNKNOWN, family):
        found.append(f"the file's metadata says {said.base}, but the tensors show {family}")
    if labelled and said.architecture is not Architecture.UNKNOWN and said.architecture not in labelled:
        found.append(f"CivitAI says {label}, but the file's metadata says {said.base}")
    dim = said.network_dim
    if identity.adapter in (Adapter.LORA, Adapter.DORA) and dim and identity.ranks and dim not in identity.ranks:
        found.append(f"the file's metadata says rank {dim}, but the tensors show {identity.rank}")
    return tuple(found)
