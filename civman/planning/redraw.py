"""Turns the settings of another program's image into a recipe that renders it again, or explains why it cannot.

Each setting is expressed exactly, or with a difference that is reported, or needs an image that no metadata contains,
or cannot be expressed. Unknown entries are reported, too. A missing setting has the value that was the default in the
A1111 version that made the image.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TextIO

from civman.diffusion import samplers
from civman.diffusion.noise_levels import Schedule
from civman.domain.digests import Sha256
from civman.domain.recipes.enlargement import METHODS, Enlargement, enlargement_of
from civman.domain.recipes.faces import WEIGHT, FaceRestoration
from civman.domain.recipes.recipe import Hires, HypernetworkUse, Recipe, Refiner
from civman.errors import Cause, UsageError
from civman.pictures.comfyui_graph import Graph, graph_of
from civman.pictures.metadata import loads, whole
from civman.pictures.site_settings import Entries, NamedFile
from civman.pictures.upscale_text import KEYS, extras_in, request_of
from civman.planning import prompt_stages
from civman.planning.redraw_controls import Controls, controls_in
from civman.planning.redraw_details import with_details
from civman.planning.redraw_features import Drawable, Reason, face_method, reasons
from civman.planning.redraw_graph import by_comfyui, redraw_graph
from civman.planning.redraw_guidance import guidance, second_ratio, second_sampling
from civman.planning.redraw_networks import (
    additional_networks,
    listed_without_tags,
    network_hash,
    old_hypernetworks,
)
from civman.planning.redraw_old_pass import old_first_pass as old_first_pass
from civman.planning.redraw_programs import redraw_program
from civman.planning.redraw_prompts import TaggedLora, as_in_version, negative_words, read_tags
from civman.planning.redraw_result import OPEN, SMALLEST_CARD, require_plannable, stand_in, verdict_of
from civman.planning.redraw_result import Redraw as Redraw
from civman.planning.redraw_sampling import SIZE, noise_of, sampler_named, sampling_of
from civman.planning.redraw_stages import (
    HIRES_CHECKPOINT,
    SECOND_ENTRIES,
    OwnTexts,
    counted_for_own_sampler,
    named_stages,
    own_texts,
    refiner,
    second_checkpoint,
    with_second_checkpoint,
)
from civman.planning.redraw_tiles import SourceImage, started
from civman.planning.redraw_upscalers import enlarged_afterwards, upscaler_named
from civman.prompts import editing

_FAMILIES: Final = ("SD 1", "SD 2", "SDXL", "Pony", "Illustrious", "NoobAI", "Other", "")
_PADDED: Final = ("DDIM", "PLMS", "UniPC")


_ENCODED_AGAIN: Final = (
    "between the passes, A1111 encodes the image to a random sample of the VAE's distribution; civman uses the mean"
)


class _Missing(Exception):
    """Raised if the settings lack a value without which no image can be rendered."""


def redraw(row: dict[str, Any]) -> Redraw:
    """Convert the settings in a row to a recipe, or to the reasons why there is none.

    A row is an object with `id`, `meta` (settings as in CivitAI's API, perhaps with a ComfyUI graph as `comfy`) and
    `baseModel`. Instead of `meta` and `baseModel`, it may contain `foreign`: the JSON text that another program wrote
    into an image. With `by_comfyui`, the settings follow ComfyUI's rules. The files that the row names are assumed to
    be present.
    """
    if isinstance(text := row.get("foreign"), str):
        return redraw_program(text, row.get("id"), row.get("source"))
    if (graph := _graph_in(row.get("meta"))) is not None:
        return redraw_graph(graph, row.get("id"), row.get("source"))
    reader = _Reader(
        Entries(row.get("meta")), str(row.get("baseModel") or ""), (whole(row.get("width")), whole(row.get("height")))
    )
    reader.source = row.get("source")
    reader.by_comfyui |= row.get("by_comfyui") is True
    try:
        recipe = reader.recipe()
    except _Missing as missing:
        reader.add(Drawable.NO, str(missing))
        recipe = {}
    except UsageError as error:
        reader.add(Drawable.NO, error.message)
        recipe = {}
    except (ArithmeticError, ValueError):
        reader.add(Drawable.NO, "a number in the settings is out of range")
        recipe = {}
    found = reader.finished()
    verdict, words = verdict_of(found)
    made, units = (reader.made, reader.controls) if recipe else (None, Controls())
    return Redraw(
        row.get("id"), verdict, words, tuple(reader.resources), recipe, made, controls=units.requests,
        references=units.references,
    )  # fmt: skip


def _graph_in(meta: object) -> Graph | None:
    found = meta.get("comfy") if isinstance(meta, dict) else None
    if isinstance(found, dict):
        found = json.dumps(found)
    return graph_of(found) if isinstance(found, str) else None


def redraw_file(path: Path) -> Iterator[Redraw]:
    """Convert each line of a file of settings (JSON Lines) as `redraw` does, in order.

    Raises: UsageError (`bad-value`): the file cannot be read.
    """
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror or error}", code=Cause.BAD_VALUE) from error
    return _each(file)


def _each(file: TextIO) -> Iterator[Redraw]:
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = loads(line)
            if isinstance(row, dict):
                yield redraw(row)
            else:
                yield Redraw(None, Drawable.NO, (f"line {number} is not a JSON object",))


class _Reader:
    """Converts the settings of one image to a recipe, and records why the image cannot be rendered exactly."""

    def __init__(self, entries: Entries, base_model: str, pixels: tuple[int | None, int | None]) -> None:
        self._entries, self._base_model, self._pixels = entries, base_model, pixels
        # read an image without a version as one of A1111 1.2, because later versions record their number
        self._version = entries.version or (1, 2)
        self._is_own = entries.is_own
        self.by_comfyui = entries.follows_comfyui
        self._found: list[Reason] = []
        self.made: Recipe | None = None
        self.source: SourceImage | None = None
        self.controls = Controls()
        self.resources: list[NamedFile] = list(entries.files())
        self._own = OwnTexts()

    def add(self, verdict: Drawable, words: str) -> None:
        """Record a reason why the image cannot be rendered exactly."""
        self._found.append(Reason(verdict, words))

    def finished(self) -> list[Reason]:
        """Return all reasons, including those for unsupported features and unknown entries in the settings."""
        self._found += reasons(self._entries)
        if self.made is not None and (unknown := self._entries.unused()):
            listed = ", ".join(f"`{name[:40]}`" for name in unknown[:8]) + (" …" if len(unknown) > 8 else "")
            self.add(Drawable.DIFFERS, f"these settings are unknown to civman and are ignored: {listed}")
        return self._found

    def recipe(self) -> dict[str, Any]:
        """Convert the image's settings to a recipe in the form of a JSON object.

        Raises: _Missing: the settings lack a value that every image needs. UsageError: a setting cannot be expressed.
        """
        self._require_family()
        prompt, negative, loras, networks = self._prompts()
        seed, steps, scale = self._needed()
        sampler, schedule = self._sampler()
        width, height = self._size()
        hires = self._hires(width, height, steps, sampler)
        if found := SIZE.fullmatch(self._entries.text("First pass size")):
            (width, height), hires = self._old_passes((int(found[1]), int(found[2])), (width, height), steps, schedule)
        tiles = self._start((width, height), has_hires=hires is not None)
        self._control(tiles)
        rules = prompt_stages.rules_for(prompt, negative, self._rule().value)
        if hires is not None:
            hires = self._own.of_hires(hires)
            rules = rules or prompt_stages.rules_for(
                hires.prompt or prompt, hires.negative_prompt or negative, self._rule().value
            )
            hires = counted_for_own_sampler(hires, prompt, rules, sampler)
        elif self._entries.take(SECOND_ENTRIES):
            self.add(Drawable.DIFFERS, "the settings contain values for a second pass, but no second pass")
        made = Recipe(
            checkpoint=stand_in("checkpoint"), prompt=prompt, negative_prompt=negative, sampler=sampler.name,
            schedule=schedule.value, steps=steps,
            guidance_scale=scale, width=width // 8 * 8, height=height // 8 * 8, seed=seed,
            clip_skip=self._entries.whole("Clip skip") or 1, prediction="epsilon", is_zero_snr=False,
            precision="float16",
            rounding="nearest" if self._is_own else "down",
            odd_sizes="forge" if self._is_own or self._entries.is_forge else "a1111",
            guidance_rescale=self._entries.number("CFG Rescale phi") or 0.0,
            hypernetworks=tuple(HypernetworkUse(stand_in(name), strength) for name, strength in networks),
            loras=tuple(each.use(stand_in(each.name), has_hires=hires is not None) for each in loras),
            pad_prompts=self._entries.is_on("Pad conds"), hires=hires,
            upscale=self._last_upscale(hires, width, height), faces=self._faces(),
            sampling=sampling_of(self._entries, sampler), **tiles,
            refiner=self._refiner(has_hires=hires is not None), prompt_rules=rules,
            **noise_of(self._entries, self._version),
            emphasis=self._emphasis(),
            fit_negative=self._fits_negative(sampler),
            **guidance(self._entries, self._version),
        )  # fmt: skip
        made = with_details(made, self._entries, self._found)
        if self.by_comfyui:
            made = by_comfyui(made)
        require_plannable(made)
        self.made = made
        self._differences(made)
        return self._value(made, loras, networks)

    def _needed(self) -> tuple[int, int, float]:
        """Return the seed, the steps and the CFG scale.

        Raises: _Missing: one of them, the sampler or the prompt is missing. A prompt that was removed is missing; an
        empty one is not.
        """
        entries = self._entries
        seed, steps, scale = entries.whole("Seed"), entries.whole("Steps"), entries.number("CFG scale")
        seed = None if seed is not None and seed < 0 else seed  # -1 means a random seed, which is unknown
        found = {"sampler": entries.text("Sampler") or None, "seed": seed, "steps": steps, "CFG scale": scale}
        missing = [] if isinstance(entries.value("prompt"), str) else ["prompt"]
        missing += [name for name, value in found.items() if value is None]
        if missing or seed is None or steps is None or scale is None:
            values = " and no ".join(filter(None, (", no ".join(missing[:-1]), missing[-1])))
            raise _Missing(f"the settings contain no {values}")
        return seed, steps, scale

    def _require_family(self) -> None:
        if not self._base_model.startswith(_FAMILIES[:-1]) and self._base_model:
            raise _Missing(
                f"the image was made with a model for {self._base_model}; civman renders images again from other "
                "programs' settings only with Stable Diffusion models"
            )

    def _prompts(self) -> tuple[str, str, list[TaggedLora], list[tuple[str, float]]]:
        prompt, negative = (self._entries.value(name) for name in ("prompt", "Negative prompt"))
        is_known = isinstance(prompt, str)
        read = read_tags(prompt if is_known else "", self._version)
        unwanted, kept = negative_words(negative if isinstance(negative, str) else "", self._emphasis())
        self._found += (*read.reasons, *kept)
        added, files, words = additional_networks(self._entries)
        old = [*old_hypernetworks(self._entries)]
        self._own = own_texts(self._entries, self._version, self._emphasis(), added, old)
        self.resources += files
        self._found += (*words, *self._own.reasons)
        loras, networks = [*read.loras, *added], [*old, *read.hypernetworks]
        if is_known:
            removed, files, words = listed_without_tags(self._entries, loras, unwanted)
            loras += removed
            self.resources += files
            self._found += words
        self._name_loras([*(self._own.loras or ()), *loras])
        every = dict([*(self._own.networks or ()), *networks])
        self.resources += [
            NamedFile("hypernetwork", name, network_hash(self._entries, name), w) for name, w in every.items()
        ]
        texts = read.text, unwanted
        text, unwanted = (as_in_version(each, self._entries, self._emphasis()) for each in texts)
        if (text, unwanted) != texts:
            self.add(Drawable.EXACT, "A1111 before 1.6 read some numbers in the prompts as plain text, not as weights "
                                     "or times; a backslash before the number preserves this")  # fmt: skip
        return text, unwanted, loras, networks

    def _name_loras(self, loras: list[TaggedLora]) -> None:
        """Remove the LoRAs that no prompt uses from the list of files, and set the weight of each remaining one."""
        weights = {each.name: each.unet for each in loras}
        known: dict[tuple[str, str], NamedFile] = {}
        for each in self.resources:
            key = (each.role, each.name)
            if key not in known or (each.hash and not known[key].hash):
                weight = weights.get(each.name) if each.role == "lora" else None
                known[key] = NamedFile(each.role, each.name, each.hash, weight)
        for name, weight in weights.items():
            known.setdefault(("lora", name), NamedFile("lora", name, "", weight))
        listed = {each.name for each in self._entries.listed("lora") if each.weight is not None}
        named = [each.name for each in known.values() if each.role == "lora"]
        if unused := [name for name in named if name not in weights and name not in listed]:
            self.add(Drawable.EXACT, f"the settings list LoRAs that the prompt does not use: {', '.join(unused[:8])}")
        self.resources = [each for each in known.values() if each.role != "lora" or each.name in weights]

    def _sampler(self) -> tuple[samplers.Sampler, Schedule]:
        sampler, schedule, found = sampler_named(self._entries, self._entries.text("Sampler"), self._version)
        self._found += found
        return sampler, schedule

    def _size(self) -> tuple[int, int]:
        found = SIZE.fullmatch(self._entries.text("Size"))
        if found is not None:
            return int(found[1]), int(found[2])
        if None in self._pixels or any("ires" in name or "pscale" in name for name in self._entries.names()):
            raise _Missing("the settings contain no size")
        self.add(Drawable.DIFFERS, "the settings contain no size; the image's own size is used")
        return int(self._pixels[0] or 0), int(self._pixels[1] or 0)

    def _hires(self, width: int, height: int, steps: int, sampler: samplers.Sampler) -> Hires | None:
        entries = self._entries
        scale, resize = entries.number("Hires upscale"), SIZE.fullmatch(entries.text("Hires resize"))
        if scale is None and resize is None and "Hires upscaler" not in entries:
            return None
        if resize and max(int(resize[1]), int(resize[2])) > 0:
            across, down = int(resize[1]), int(resize[2])
            larger = across or width * down // height, down or height * across // width
        else:
            scale = 2.0 if scale is None else scale
            larger = int(width * scale), int(height * scale)
        upscaler, model = self._upscaler(entries.text("Hires upscaler") or "Latent")
        if not upscaler.startswith("latent"):
            self.add(Drawable.DIFFERS, _ENCODED_AGAIN)
            if any(side % 8 for side in larger):
                self.add(Drawable.DIFFERS, "the size of the second pass is rounded down to multiples of 8")
        strength = entries.number("Denoising strength")
        if strength is None:
            self.add(Drawable.DIFFERS, "the settings lack the second pass's strength; A1111's default of 0.7 is used")
        made = Hires(
            larger[0] // 8 * 8, larger[1] // 8 * 8, entries.whole("Hires steps") or steps,
            0.7 if strength is None else strength, upscaler, model, second_ratio(entries),
            **second_sampling(entries, sampler.name),
        )  # fmt: skip
        checkpoint = second_checkpoint(entries)
        self.resources += [checkpoint] if checkpoint is not None else []
        return with_second_checkpoint(made, checkpoint)

    def _refiner(self, *, has_hires: bool) -> Refiner | None:
        found = refiner(self._entries, self._version, has_hires=has_hires)
        if found is None:
            return None
        self.resources.append(found[0])
        return found[1]

    def _old_passes(
        self, first: tuple[int, int], final: tuple[int, int], steps: int, schedule: Schedule
    ) -> tuple[tuple[int, int], Hires]:
        """Return the first pass's size, and the second pass, by the rules of A1111 before 2023."""
        size, trim = old_first_pass(first, final)
        strength = self._entries.number("Denoising strength")
        if schedule is Schedule.KARRAS and not self._is_own:
            self.add(Drawable.DIFFERS, "A1111 before 2023 used the schedule Karras for noise levels from 10 to 0.1; "
                                       "civman uses it for all levels that the model was trained on")  # fmt: skip
        self.add(Drawable.DIFFERS, _ENCODED_AGAIN)
        if strength is None:
            self.add(Drawable.DIFFERS, "the settings lack the second pass's strength; A1111's default of 0.7 is used")
        return size, Hires(
            final[0] // 8 * 8, final[1] // 8 * 8, self._entries.whole("Hires steps") or steps,
            0.7 if strength is None else strength, "lanczos", None, second_ratio(self._entries),
            trim[0] // 16 * 16, trim[1] // 16 * 16, stretches=True,
        )  # fmt: skip

    def _upscaler(self, name: str) -> tuple[str, Sha256 | None]:
        """Convert A1111's name of an upscaler to civman's built-in one, or to "model" with a placeholder digest."""
        found = upscaler_named(name, self._version)
        self._found += found.reasons
        if found.file is None:
            return found.method, None
        if found.file not in self.resources:
            self.resources.append(found.file)
        return found.method, stand_in(name)

    def _faces(self) -> FaceRestoration | None:
        """Return the face restoration, with placeholders for the digests of its models; None if there is none."""
        method = face_method(self._entries)
        if method is None:
            return None
        weight = self._entries.number("CodeFormer weight") if self._is_own else None
        if method == "gfpgan":
            self.add(Drawable.DIFFERS, "the faces were restored with GFPGAN, to which A1111 adds random noise")
        elif not self._is_own:
            self.add(
                Drawable.DIFFERS,
                f"CodeFormer restored the faces with an unknown weight; A1111's default of {WEIGHT:g} is used",
            )
        if self._version < (1, 8):
            self.add(Drawable.DIFFERS, "A1111 before 1.8 rounded the pixels of restored faces differently")
        return FaceRestoration(
            method, stand_in(method), stand_in("retinaface"), stand_in("parsenet"), WEIGHT if weight is None else weight
        )

    def _last_upscale(self, hires: Hires | None, width: int, height: int) -> Enlargement | None:
        """Return how A1111's postprocessing enlarged the finished image; None if it did not."""
        drawn_size = (hires.width, hires.height) if hires else (width // 8 * 8, height // 8 * 8)
        settings = extras_in({name: self._entries.text(name) for name in KEYS if name in self._entries})
        if settings is None:
            if "Postprocess upscaler" in self._entries:
                self.add(Drawable.NO, "the finished image was upscaled, but the settings do not contain the new size")
            return None
        if settings.others:
            self.add(Drawable.NO, "a second upscaler was blended in, but A1111 does not record how strongly")
        method, model = self._upscaler(settings.upscaler)
        if method not in METHODS:
            raise _Missing(f"the finished image was upscaled with `{settings.upscaler}`, which civman does not support")
        return enlargement_of(
            replace(request_of(settings, drawn_size), upscaler=method), drawn_size, model=model, model_scale=None
        )

    def _start(self, size: tuple[int, int], *, has_hires: bool) -> dict[str, Any]:
        """Return the input image and the settings of a redraw in tiles.

        Records a reason if the settings need an input image that was not given.
        """
        found = started(
            self._entries, self.source, self._upscaler, self._version, size,
            has_passes=has_hires or "First pass size" in self._entries,
        )  # fmt: skip
        self._found += found.reasons
        return found.recipe

    def _control(self, started: dict[str, Any]) -> None:
        """Read the units of the ControlNet extension, and record why they are not reproduced exactly.

        `started`: the result of `_start`.
        """
        self.controls = controls_in(self._entries, self.source, started)
        models = dict.fromkeys((*self.controls.files, *self.controls.adapters))
        self.resources += [each for each in models if each not in self.resources]
        self._found += self.controls.reasons

    def _rule(self) -> editing.Rule:
        if self._entries.is_on("Old prompt editing timelines") or self._version < (1, 3):
            return editing.Rule.V1_0 if self._version < (1, 3) else editing.Rule.V1_3
        return editing.Rule.V1_3 if self._version < (1, 6) else editing.Rule.V1_6

    def _emphasis(self) -> str:
        return "comfyui" if self.by_comfyui else self._entries.text("Emphasis").casefold() or "original"

    def _fits_negative(self, sampler: samplers.Sampler) -> bool:
        """Whether A1111 cut or padded the negative prompt to as many tokens as the prompt has."""
        if self._entries.is_on("Pad conds"):
            return False
        return self._entries.is_on("Pad conds v0") or (self._version < (1, 6) and sampler.name in _PADDED)

    def _differences(self, made: Recipe) -> None:
        from_card = made.step_rng == "nv" or (made.rng == "nv" and "RNG" not in self._entries)
        if from_card and max(4 * (w // 8) * (h // 8) for w, h in made.drawn_sizes) > SMALLEST_CARD:
            self.add(Drawable.DIFFERS, "at this size, the noise depends on the graphics card, which the settings do not"
                                       " name: `--set rng=CARD` specifies the card")  # fmt: skip
        if self.by_comfyui:
            self.add(Drawable.DIFFERS, "the image was made with ComfyUI, perhaps by CivitAI's generator, so civman uses"
                                       " ComfyUI's rules, which the settings do not mention")  # fmt: skip
        elif not any(each.role == "vae" for each in self.resources) and self._version < (1, 6):
            self.add(Drawable.DIFFERS, "A1111 before 1.6 did not record the VAE; the one in the checkpoint is used")
        texts = [part.text for each in (made.prompt, *self._own.texts) for part in editing.parts(each)]
        if "Version" not in self._entries and any(map(editing.changes, (*texts, made.negative_prompt))):
            self.add(Drawable.DIFFERS, "the prompt changes during the steps, and the settings contain no version: the "
                                       "steps are counted as in A1111 1.2")  # fmt: skip
        self._found += enlarged_afterwards(self._entries, made, self._pixels)
        for each in (each for each in self.resources if not each.hash and each.role != "embedding"):
            role = "checkpoint of the second pass" if each.role == HIRES_CHECKPOINT else each.role
            words = f"the settings name the {role} `{each.name}` without a hash"
            words = words if each.name else "the settings name no checkpoint"
            self.add(Drawable.DIFFERS if each.name else Drawable.NO, words)

    def _value(self, made: Recipe, loras: list[TaggedLora], networks: list[tuple[str, float]]) -> dict[str, Any]:
        """Return the recipe as JSON, with files by name and hash, and without values that depend on the checkpoint."""
        value = asdict(made)
        if made.hires:
            name = self._entries.text("Hires upscaler") or ("None" if made.hires.stretches else "Latent")
            digest = next((each.hash for each in self.resources if (each.role, each.name) == ("upscaler", name)), "")
            value["hires"] |= {"upscaler": name, "model": {"name": name, "hash": digest} if made.hires.model else None}
        if made.faces:
            value["faces"] = {"method": made.faces.method, "weight": made.faces.weight}
        for key in ("upscale", "tiled", "ultimate", "input_upscale"):
            if (part := getattr(made, key)) and part.model:
                found = next(each for each in self.resources if stand_in(each.name) == part.model)
                value[key] |= {"model": {"name": found.name, "hash": found.hash}}
        named_stages(made, value, self.resources)
        for name in (*OPEN, "files", "vae", "start", "count", "batch_size"):
            del value[name]
        hashes = {(each.role, each.name): each.hash for each in self.resources}
        named = {each.role: {"name": each.name, "hash": each.hash} for each in self.resources}
        return value | {
            "checkpoint": named["checkpoint"], "vae": named.get("vae"), "controls": self.controls.values(),
            "loras": [
                {"name": each.name, "hash": hashes.get(("lora", each.name), ""), "scale": each.unet,
                 "text_scale": each.text, "blocks": each.blocks, "keyframes": each.keyframes,
                 "hires_keyframes": each.hires_keyframes}
                for each in loras
            ],
            "hypernetworks": [
                {"name": name, "hash": hashes.get(("hypernetwork", name), ""), "strength": strength}
                for name, strength in networks
            ],
            "embeddings": [
                {"name": each.name, "hash": each.hash} for each in self.resources if each.role == "embedding"
            ],
        }  # fmt: skip
