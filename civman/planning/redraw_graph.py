"""Turns a ComfyUI graph into a recipe that renders its image by ComfyUI's rules, or names the node that prevents it.

Source: ComfyUI; `docs/redraw.md` lists its rules.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from civman.diffusion import sampler_names, samplers
from civman.diffusion.noise_levels import NoiseLevels
from civman.domain.recipes.recipe import Hires, LoraUse, Recipe, Sampling, StartImage
from civman.errors import UsageError
from civman.pictures.comfyui_graph import Graph
from civman.pictures.site_settings import NamedFile
from civman.planning.graph_images import Given
from civman.planning.graph_passes import Enlarged, Passes, Sampled, passes_of, table_of
from civman.planning.graph_values import Clip, Model, Stopped, Text, stem
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_result import OPEN, SMALLEST_CARD, Redraw, require_plannable, stand_in, verdict_of
from civman.planning.redraw_tiles import SourceImage
from civman.prompts import comfyui_syntax

_SAMPLERS: Final = {"ddim": "Euler"}
"""Maps ComfyUI's names of samplers to civman's, where the two differ."""
_TREES: Final = ("DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE")
_NOISELESS: Final = ("DPM fast", "DPM adaptive")
"""Samplers that add noise in A1111, but not in ComfyUI, where their eta is 0."""
_FULL: Final = 0.9999
_OTHER_FAMILIES: Final = re.compile(
    r"flux[._ -]?[12]|sd[_ ]?3(\.5|_medium)|qwen[._ -]image|z[._ -]image|hunyuan|wan2|lumina|auraflow|pixart|"
    r"stable[._ -]cascade|hidream|cosmos", re.IGNORECASE,
)  # fmt: skip


def redraw_graph(graph: Graph, name: object = None, source: SourceImage | None = None) -> Redraw:
    """Convert a ComfyUI graph to a recipe; the model files that the graph names are assumed to be present.

    `source`: the first of the images that the user passed for nodes that load images; its `others` contains the rest.
    """
    try:
        found = passes_of(graph, Given(source.all if source is not None else ()))
    except Stopped as stopped:
        return Redraw(name, stopped.verdict, (stopped.words,))
    except (ArithmeticError, ValueError):
        return Redraw(name, Drawable.NO, ("a number in the graph is out of range",))
    return redraw_passes(found, name, reasons=found.reasons)


def redraw_passes(
    found: Passes, name: object, *, reasons: Sequence[Reason], digests: Mapping[str, str] = {}
) -> Redraw:  # fmt: skip
    """Convert the passes of an image to a recipe by ComfyUI's rules. `digests`: the hashes of model files, by name."""
    builder = _Builder(list(reasons), digests)
    recipe: dict[str, Any] = {}
    try:
        recipe = builder.recipe(found)
    except Stopped as stopped:
        builder.add(stopped.verdict, stopped.words)
    except UsageError as error:
        builder.add(Drawable.NO, error.message)
    except (ArithmeticError, ValueError):
        builder.add(Drawable.NO, "a number in the settings is out of range")
    verdict, words = verdict_of(builder.reasons)
    made = builder.made if recipe else None
    return Redraw(name, verdict, words, tuple(builder.files.values()), recipe, made, tuple(builder.leaves))


@dataclass(slots=True)
class _Builder:
    reasons: list[Reason]
    digests: Mapping[str, str]
    files: dict[tuple[str, str], NamedFile] = field(default_factory=dict)
    leaves: list[str] = field(default_factory=lambda: list(OPEN))
    """The fields of a request that depend on the checkpoint, because the graph does not set them."""
    made: Recipe | None = None

    def add(self, verdict: Drawable, words: str) -> None:
        self.reasons.append(Reason(verdict, words))

    def recipe(self, found: Passes) -> dict[str, Any]:
        (_, first), *others = found.passes
        start = _start(found, first, has_second=bool(others))
        first = _with_levels(first) if start is None else first
        second = others[0] if others else None
        self._require_same(first, second[1] if second else None)
        checkpoint, clip = first.model.checkpoint, first.positive.clip
        plain = self._file("checkpoint", checkpoint)
        if other := _OTHER_FAMILIES.search(plain):
            raise Stopped(
                f"the name of the checkpoint `{plain}` contains {other[0]}, so it is not a Stable Diffusion model; "
                "civman reads ComfyUI's graphs and settings only for SD 1, SD 2 and SDXL"
            )
        loras = self._loras(first.model, clip)
        sampler = self._sampler(first)
        self._leave(first.model, clip)
        vae = self._vae(found, checkpoint)
        negative = first.negative or Text("", clip)
        texts = (first.positive,) if first.negative is None else (first.positive, first.negative)
        told = self._sizes(texts, found)
        made = Recipe(
            checkpoint=stand_in("checkpoint"), prompt=first.positive.text, negative_prompt=negative.text,
            sampler=sampler.name, schedule=first.schedule.value, steps=first.steps, guidance_scale=first.cfg,
            width=found.width, height=found.height, seed=first.seed,
            clip_skip=-clip.layer if clip.layer is not None else 1, prediction=first.model.prediction or "epsilon",
            is_zero_snr=bool(first.model.is_zero_snr), precision="float16", rng="cpu",
            step_rng=self._step_rng(first, second[1] if second else None), noise_slice=found.slice, rounding="down",
            emphasis="comfyui", loras=tuple(loras), prompt_parts=first.positive.parts, negative_parts=negative.parts,
            guidance_rescale=first.model.rescale, rescales_velocity=bool(first.model.rescale),
            start=start, freeu=first.model.freeu, told_sizes=told, hires=self._hires(*second) if second else None,
            sampling=Sampling(
                program="comfyui", sigmas=first.sigmas, eta=self._eta(first, second[1] if second else None),
                noise_scale=first.s_noise if sampler.takes_s_noise else 1.0,
            ),
        )  # fmt: skip
        require_plannable(made)
        self._embeddings(made)
        self.made = made
        self._differences(made)
        return self._value(made, loras, vae)

    def _require_same(self, first: Sampled, second: Sampled | None) -> None:
        if first.negative and first.negative.clip != first.positive.clip:
            raise Stopped(f"{first.node} has prompts from two different text encoders, which civman does not support")
        if first.model.checkpoint != first.positive.clip.checkpoint:
            raise Stopped(
                f"{first.node} uses the UNet and the text encoders of two checkpoints, which civman does not support"
            )
        if second is None:
            return
        if second.model != first.model:
            raise Stopped(f"{second.node} uses another model, LoRA or model setting than the first pass")
        same = second.positive == first.positive and (second.negative or first.negative) == first.negative
        if not same and first.negative is not None:
            raise Stopped(f"{second.node} uses another prompt than the first pass, which civman does not support")
        if first.negative is None and (second.positive != first.positive or second.negative is not None):
            raise Stopped(f"{second.node} uses a negative prompt that the first pass does not have")
        adds = [self._sampler(each).name not in _NOISELESS for each in (first, second)]
        kinds = [self._sampler(each).noise for each in (first, second)]
        if adds[0] != adds[1] and samplers.Kind.NONE not in kinds:
            raise Stopped(f"only one of {first.node} and {second.node} adds noise in its steps, which civman does not "
                          "support")  # fmt: skip
        if second.sigmas or (second.eta, second.s_noise) != (first.eta, first.s_noise):
            raise Stopped(
                f"{second.node} has other noise levels or another eta than the first pass, which civman does not "
                "support"
            )

    def _file(self, role: str, name: str, weight: float | None = None) -> str:
        plain = stem(name)
        self.files[role, plain] = NamedFile(role, plain, self.digests.get(plain, ""), weight)
        return plain

    def _loras(self, model: Model, clip: Clip) -> list[LoraUse]:
        """Return the LoRAs, one for each LoRA node, with the scales for the UNet and for the text encoders."""
        names = {node: name for node, name, _ in (*model.loras, *clip.loras)}
        unet = {node: strength for node, _, strength in model.loras}
        text = {node: strength for node, _, strength in clip.loras}
        uses = []
        for node, name in names.items():
            scales = unet.get(node, 0.0), text.get(node, 0.0)
            if scales != (0.0, 0.0):
                uses.append(LoraUse(stand_in(self._file("lora", name, scales[0])), *scales))
        return uses

    def _sampler(self, sampled: Sampled) -> samplers.Sampler:
        plain = sampled.sampler.removesuffix("_gpu")
        if plain.startswith("uni_pc"):
            raise Stopped(f"{sampled.node} uses `{plain}`, whose noise levels end at 0.001 in ComfyUI; civman supports "
                          "only A1111's version of UniPC")  # fmt: skip
        try:
            sampler, _ = sampler_names.parse(_SAMPLERS.get(plain, plain), "Normal")
        except UsageError as error:
            raise Stopped(f"{sampled.node}: {error.message}") from error
        return sampler

    def _step_rng(self, first: Sampled, second: Sampled | None) -> str:
        """Return the source of the steps' noise: "nv" for a GPU, "cpu", or "" if the samplers add no noise.

        The SDE samplers in `_TREES` use the CPU unless their names end with `_gpu`.
        """
        sources = [
            "cpu" if sampler.name in _TREES and not each.sampler.endswith("_gpu") else "nv"
            for each in (first, second)
            if each is not None
            and (sampler := self._sampler(each)).noise is not samplers.Kind.NONE
            and sampler.name not in _NOISELESS
        ]
        if len(set(sources)) > 1:
            raise Stopped("one pass uses noise from the CPU and the other from a graphics card, which civman does not "
                          "support")  # fmt: skip
        return sources[0] if sources else ""

    def _eta(self, first: Sampled, second: Sampled | None) -> float:
        """Return eta, which scales the noise that the steps of both passes add."""
        names = [self._sampler(each).name for each in (first, second) if each is not None]
        if any(name in _NOISELESS for name in names):
            return 0.0
        return first.eta if self._sampler(first).takes_eta else 1.0

    def _leave(self, model: Model, clip: Clip) -> None:
        """Update `leaves`, the list of fields that the graph does not set, for this model and its text encoders."""
        if clip.layer is None:
            self.leaves.append("clip_skip")
        if model.prediction:
            self.leaves.remove("prediction")
            self.leaves.remove("is_zero_snr")

    def _vae(self, found: Passes, checkpoint: str) -> str:
        """Return the name of the VAE's separate file, or an empty string if the VAE is part of the checkpoint."""
        used = set(found.vaes)
        if len(used) > 1:
            raise Stopped("the graph uses two VAEs, which civman does not support")
        [(own, file)] = used
        if own and own != checkpoint:
            raise Stopped("the graph uses the VAE of another checkpoint, which civman does not support")
        return self._file("vae", file) if file else ""

    def _sizes(self, texts: Sequence[Text], found: Passes) -> str:
        """Return SDXL's size conditioning; empty if there is none, or if it equals the default for the image's size."""
        stated = {text.sizes for text in texts}
        if len(stated) > 1:
            raise Stopped(
                "the prompt and the negative prompt have different SDXL size values, which civman does not support"
            )
        [sizes] = stated
        plain = (found.height, found.width, 0, 0, found.height, found.width)
        if not sizes or (sizes == plain and len(found.passes) == 1):
            return ""
        return f"{sizes[1]}x{sizes[0]}+{sizes[3]}+{sizes[2]},{sizes[5]}x{sizes[4]}"

    def _hires(self, enlarged: Enlarged | None, second: Sampled) -> Hires:
        assert enlarged is not None
        model = self._file("upscaler", enlarged.model) if enlarged.model else ""
        sampler = self._sampler(second)
        return Hires(
            enlarged.width, enlarged.height, second.steps, second.strength, enlarged.upscaler,
            stand_in(model) if model else None, stretches=True, seed=second.seed, guidance_scale=second.cfg,
            sampler=sampler.name, schedule=second.schedule.value, resize=enlarged.resize,
        )  # fmt: skip

    def _embeddings(self, made: Recipe) -> None:
        texts = (made.prompt, made.negative_prompt, *(part.text for part in (*made.prompt_parts, *made.negative_parts)))
        for name in dict.fromkeys(name for text in texts for name in comfyui_syntax.embeddings_in(text)):
            self._file("embedding", name)

    def _differences(self, made: Recipe) -> None:
        if made.step_rng == "nv" and _values(made) > SMALLEST_CARD:
            self.add(Drawable.DIFFERS, "at this size, the noise of the steps depends on the graphics card, which the "
                                       "graph does not name: --step-rng CARD specifies the card")  # fmt: skip
        for each in self.files.values():
            if each.role != "embedding" and not each.hash and not each.name.startswith("urn:air:"):
                self.add(Drawable.DIFFERS, f"the settings name the {each.role} `{each.name}` without a hash")

    def _value(self, made: Recipe, loras: Sequence[LoraUse], vae: str) -> dict[str, Any]:
        """Return the recipe as JSON, with names instead of digests, and without checkpoint-dependent values."""
        value = asdict(made)
        names = {stand_in(each.name): each.name for each in self.files.values() if each.role == "lora"}
        for name in ("precision", "files", "config", "vae", "start", "count", "batch_size", *self.leaves):
            value.pop(name, None)
        if made.hires:
            upscaler = next((each.name for each in self.files.values() if each.role == "upscaler"), "")
            value["hires"] |= {"model": {"name": upscaler, "hash": ""} if upscaler else None}
        checkpoint = next(each for each in self.files.values() if each.role == "checkpoint")
        return value | {
            "checkpoint": {"name": checkpoint.name, "hash": checkpoint.hash},
            "vae": {"name": vae, "hash": ""} if vae else None,
            "loras": [
                {"name": names[use.sha256], "hash": self.digests.get(names[use.sha256], ""), "scale": use.scale,
                 "text_scale": use.text_scale, "blocks": "", "keyframes": "",
                 "hires_keyframes": ""}
                for use in loras
            ],
            "hypernetworks": [],
            "embeddings": [{"name": each.name, "hash": ""} for each in self.files.values() if each.role == "embedding"],
        }  # fmt: skip


def by_comfyui(made: Recipe) -> Recipe:
    """Change a recipe that was read from settings in A1111's form so that it follows ComfyUI's rules."""
    sampler = samplers.BY_NAME[_SAMPLERS.get(made.sampler.casefold(), made.sampler)]
    is_plain = sampler.noise is samplers.Kind.NONE or sampler.name in _NOISELESS
    source = "" if is_plain else "cpu" if sampler.name in _TREES else "nv"
    eta = 0.0 if sampler.name in _NOISELESS else made.sampling.eta
    return replace(
        made, sampler=sampler.name, schedule="Normal" if made.schedule == "Automatic" else made.schedule, rng="cpu",
        step_rng=source, eta_seed_delta=0, emphasis="comfyui", prompt_rules="", odd_sizes="forge", pad_prompts=False,
        fit_negative=False,
        sampling=replace(made.sampling, program="comfyui", half_levels=False, drop_penultimate=False, eta=eta),
    )  # fmt: skip


def _start(found: Passes, first: Sampled, *, has_second: bool) -> StartImage | None:
    """Return the input image of a recipe, with its mask; None if the first pass starts from empty latents."""
    start = found.start
    if start is None:
        return None
    if first.sigmas:
        raise Stopped(f"{first.node} starts from an image with custom noise levels, which civman does not support")
    if first.strength <= 0:
        raise Stopped(f"{first.node} has a denoising strength of 0, so it does nothing")
    mask = start.mask
    if mask is not None and has_second:
        raise Stopped(f"{first.node} inpaints and is followed by a second pass, which civman does not support")
    return StartImage(
        start.source.sha256, first.strength, mask.source.sha256 if mask else None, 0, f"comfyui {start.resize}",
        mask_channel=mask.channel if mask else "", grow_mask=mask.grow if mask else None,
    )  # fmt: skip


def _with_levels(first: Sampled) -> Sampled:
    """Replace a strength below 1 in the first pass with the noise levels that it selects.

    The first pass starts from empty latents, so a strength only shortens its schedule.
    """
    if first.sigmas or first.strength > _FULL:
        return first
    plain = first.sampler.removesuffix("_gpu")
    drops = plain in ("dpm_2", "dpm_2_ancestral")
    if first.strength <= 0:
        raise Stopped(f"{first.node} has a denoising strength of 0, so it does nothing")
    whole = table_of(first.schedule, int(first.steps / first.strength) + drops, NoiseLevels.of_model(program="comfyui"))
    whole = [*whole[:-2], whole[-1]] if drops else whole
    return replace(first, sigmas=tuple(whole[-(first.steps + 1) :]))


def _values(made: Recipe) -> int:
    """Return the number of values in the largest noise tensor that is generated at once."""
    sizes: Iterator[tuple[int, int]] = iter(
        [(made.width, made.height), *([(made.hires.width, made.hires.height)] if made.hires else [])]
    )
    count = int(made.noise_slice.partition("/")[2] or 1)
    return max(4 * (width // 8) * (height // 8) for width, height in sizes) * count
