"""Reads the passes of a ComfyUI graph, from the node that saves the image back to the empty latents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from civman.diffusion import single_precision
from civman.diffusion.noise_levels import NoiseLevels, Schedule, table
from civman.diffusion.single_precision import single
from civman.errors import UsageError
from civman.pictures.comfyui_graph import Graph, Link, Node
from civman.planning.graph_images import Given, StartPixels
from civman.planning.graph_values import Model, Reader, Stopped, Text
from civman.planning.redraw_features import Drawable, Reason

_SAVING: Final = ("SaveImage", "Image Save", "SaveImageWebsocket", "PreviewImage")
_FILTERS: Final = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp", "lanczos")
SCHEDULES: Final = {
    "normal": Schedule.NORMAL, "karras": Schedule.KARRAS, "exponential": Schedule.EXPONENTIAL,
    "sgm_uniform": Schedule.SGM_UNIFORM, "simple": Schedule.SIMPLE, "ddim_uniform": Schedule.DDIM,
    "beta": Schedule.BETA, "kl_optimal": Schedule.KL_OPTIMAL,
}  # fmt: skip
"""The schedules that civman supports, by ComfyUI's names."""
_MOST_STEPS: Final = 10000
_MOST_RESIZED: Final = 200
"""The maximum number of consecutive resizing nodes that are read, so that reading ends even if the graph is circular.
"""
_MEMORYLESS: Final = ("euler", "heun", "dpm_2")
"""Samplers that keep no state between steps, so two nodes may share a pass without changing its result."""


@dataclass(frozen=True, slots=True)
class Enlarged:
    """An enlargement before a pass: the new size in pixels, the upscaler and, if it is a model, the model's name."""

    width: int
    height: int
    upscaler: str
    model: str = ""
    resize: str = ""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One pass, as described by a sampler node. `sigmas`: the noise levels, if they are not those of the schedule."""

    node: Node
    model: Model
    positive: Text
    negative: Text | None
    seed: int
    steps: int
    cfg: float
    sampler: str
    schedule: Schedule
    strength: float = 1.0
    sigmas: tuple[float, ...] = ()
    eta: float = 1.0
    s_noise: float = 1.0


@dataclass(slots=True)
class Passes:
    """The passes of a graph, and everything else that its sampler nodes determine.

    `passes`: each pass with the enlargement before it, or None. `width`, `height`: the size of the first pass in
    pixels. `slice`: the position of the image in its batch; empty without a batch. `vaes`: for each node with a VAE,
    the checkpoint's name and the VAE file's name, only one of which is set. `reasons`: why the image cannot be rendered
    exactly.
    """

    width: int = 0
    height: int = 0
    slice: str = ""
    passes: list[tuple[Enlarged | None, Sampled]] = field(default_factory=list)
    vaes: list[tuple[str, str]] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    start: StartPixels | None = None
    """The input image of the first pass; None if the first pass starts from empty latents."""


def passes_of(graph: Graph, given: Given) -> Passes:
    """Read the passes of a ComfyUI graph. Raises: Stopped: civman cannot follow the graph.

    `given`: the images that the user passed for nodes that load an image.
    """
    reader = _PassReader(Reader(graph), Passes(), given)
    reader.read()
    return reader.found


class _PassReader:
    def __init__(self, reader: Reader, found: Passes, given: Given) -> None:
        self._reader, self.found, self._given = reader, found, given

    def read(self) -> None:
        saving = self._saving()
        node = self._reader.node(
            saving.inputs.get("images", saving.inputs.get("image")), f"the image that {saving} saves"
        )
        self._reader.seen.add(saving.id)
        self._image_of_end(node)

    def _saving(self) -> Node:
        """Return the last node that saves an image; if no node does, the last one that previews an image."""
        found = [node for node in self._reader.graph.values() if node.kind in _SAVING and _has_image(node)]
        found = [node for node in found if node.kind != "PreviewImage"] or found
        if not found:
            other = next((node for node in self._reader.graph.values() if "save" in node.kind.casefold()), None)
            raise Stopped(f"{other} saves an image in a way that civman does not support" if other else
                          "the graph saves no image")  # fmt: skip
        found.sort(key=lambda node: (len(node.id), node.id))
        sources = {(node.inputs.get("images") or node.inputs.get("image")) for node in found}
        if len(sources) > 1:
            self._add(Drawable.DIFFERS, f"the graph saves {len(sources)} images; civman renders the one of {found[-1]}")
        return found[-1]

    def _add(self, verdict: Drawable, words: str) -> None:
        self.found.reasons.append(Reason(verdict, words))

    def _image_of_end(self, node: Node) -> None:
        if node.kind in ("VAEDecode", "VAEDecodeTiled"):
            self._decoded(node)
        elif node.kind in ("ImageUpscaleWithModel", "ImageScale", "ImageScaleBy"):
            raise Stopped(f"{node} enlarges the finished image, which civman does not support (see `civman upscale`)")
        elif "LoadImage" in node.kind:
            raise Stopped(f"{node} loads an image that the graph does not contain", Drawable.NEEDS_INPUT)
        else:
            raise self._reader.unknown(node, "the finished image")

    def _decoded(self, node: Node) -> None:
        if node.kind == "VAEDecodeTiled":
            self._add(Drawable.DIFFERS, f"{node} decodes the image in tiles; civman decodes the whole image at once")
        self.found.vaes.append(self._reader.vae(node.inputs.get("vae")))
        self._sampled(node.inputs.get("samples"))

    def _sampled(self, link: object) -> None:
        """Read the pass to which a link leads, and also the earlier pass whose result it starts from, if any."""
        node = self._reader.node(link, "the latents")
        if node.kind == "LatentFromBatch":
            index, length = self._reader.whole(node, "batch_index"), self._reader.whole(node, "length")
            if length != 1 or self.found.slice or self.found.passes:
                raise Stopped(f"{node} selects {length} images of a batch, but civman renders only one")
            self.found.slice = str(index + 1)
            node = self._reader.node(node.inputs.get("samples"), "the latents")
        if len(self.found.passes) > 1:
            raise Stopped(f"{node} is one of more than two passes, but civman supports at most two")
        read = {
            "KSampler": self._ksampler, "KSamplerAdvanced": self._advanced, "SamplerCustom": self._custom,
            "SamplerCustomAdvanced": self._custom_advanced,
        }.get(node.kind)  # fmt: skip
        if read is None:
            raise self._reader.unknown(node, "the latents")
        made = read(node)
        later = len(self.found.passes)
        self.found.passes.insert(0, (None, made))
        enlarged = self._before(made.node.inputs.get("latent_image"), made)
        self.found.passes[len(self.found.passes) - 1 - later] = (enlarged, made)

    def _before(self, link: object, made: Sampled) -> Enlarged | None:
        """Read the latents from which a pass starts: empty ones, the input image's, or the previous pass's.

        Returns the enlargement of the previous pass's latents; None if the pass is the first one.
        """
        node = self._reader.node(link, f"the latents from which {made.node} starts")
        if node.kind == "EmptyLatentImage":
            self._empty(node)
            return None
        if self._loads(node):
            return None
        if len(self.found.passes) > 1:
            raise Stopped(f"{made.node} is one of more than two passes, but civman supports at most two")
        if node.kind in ("LatentUpscale", "LatentUpscaleBy"):
            self._sampled(node.inputs.get("samples"))
            return self._latent_size(node)
        if node.kind == "VAEEncode":
            return self._encoded(node)
        if node.kind in ("LoadLatent", "VAEEncodeTiled"):
            raise Stopped(f"{node} starts from an image that the graph does not contain", Drawable.NEEDS_INPUT)
        self._sampled(Link(node.id, 0))
        return Enlarged(self.found.width, self.found.height, "latent-nearest-exact")

    def _loads(self, node: Node) -> bool:
        """Read the input image that the first pass starts from; returns False if it starts from something else."""
        mask, read = None, self._reader
        if node.kind == "SetLatentNoiseMask":
            mask = self._given.mask(read, node.inputs.get("mask"))
            node = read.node(node.inputs.get("samples"), f"the latents that {node} masks")
            if node.kind != "VAEEncode":
                raise read.unknown(node, "the masked latents")
        if node.kind not in ("VAEEncode", "VAEEncodeForInpaint"):
            return False
        steps, image = self._resized(node)
        if image.kind != "LoadImage":
            self._require_unmasked(node, image, has_mask=mask is not None)
            return False
        if node.kind == "VAEEncodeForInpaint":
            grow = read.whole(node, "grow_mask_by") if "grow_mask_by" in node.inputs else 6
            mask = self._given.mask(read, node.inputs.get("mask"), grow)
        self.found.vaes.append(read.vae(node.inputs.get("vae")))
        source = self._given.of(read, image)
        self.found.width, self.found.height = source.size
        enlarged = self._between(node, steps) if steps else None
        if enlarged is not None and enlarged.model:
            raise Stopped(f"{steps[0]} enlarges the input image with a model, which civman does not support")
        size = (enlarged.width, enlarged.height) if enlarged else source.size
        self.found.width, self.found.height = size[0] // 8 * 8, size[1] // 8 * 8
        if self.found.slice not in ("", "1"):
            raise Stopped(f"{node} makes a single image, but the graph selects another image of its batch")
        self.found.slice, resize = "", enlarged.upscaler if enlarged else "crop"
        self.found.start = StartPixels(source, resize, mask)
        return True

    @staticmethod
    def _require_unmasked(node: Node, image: Node, *, has_mask: bool) -> None:
        """Check that a node that encodes the result of a pass uses no mask. Raises: Stopped: it uses one."""
        if has_mask or node.kind == "VAEEncodeForInpaint":
            raise Stopped(f"{node} encodes the output of {image} with a mask, which civman does not support")

    def _empty(self, node: Node) -> None:
        width, height = self._reader.whole(node, "width"), self._reader.whole(node, "height")
        count = self._reader.whole(node, "batch_size") if "batch_size" in node.inputs else 1
        self.found.width, self.found.height = width // 8 * 8, height // 8 * 8
        if count > 1:
            if not self.found.slice:
                self._add(
                    Drawable.DIFFERS,
                    f"{node} makes {count} images at once, and the graph does not show which of them this is: civman "
                    "renders the first one (--noise-slice selects another)",
                )
            self.found.slice = f"{self.found.slice or 1}/{count}"
        elif self.found.slice not in ("", "1"):
            raise Stopped(f"{node} makes a single image, but the graph selects another image of its batch")
        else:
            self.found.slice = ""

    def _latent_size(self, node: Node) -> Enlarged:
        way = self._filter(node)
        if node.kind == "LatentUpscaleBy":
            factor = self._reader.number(node, "scale_by")
            across, down = (round(side // 8 * factor) * 8 for side in (self.found.width, self.found.height))
        else:
            across, down = (self._reader.whole(node, name) for name in ("width", "height"))
            across, down = self._kept_shape(node, across, down)
            across, down = max(64, across) // 8 * 8, max(64, down) // 8 * 8
        return Enlarged(across, down, "latent" if way == "bilinear" else f"latent-{way}")

    def _kept_shape(self, node: Node, width: int, height: int) -> tuple[int, int]:
        """Return the size in pixels to which a node upscales; a side of 0 is computed from the aspect ratio."""
        if width == 0 and height == 0:
            return self.found.width, self.found.height
        width = width or max(1, round(self.found.width * height / self.found.height))
        height = height or max(1, round(self.found.height * width / self.found.width))
        is_cropped = self._reader.value(node, "crop") == "center"
        if is_cropped and width * self.found.height != height * self.found.width:
            raise Stopped(f"{node} crops the image to another aspect ratio, which civman does not support")
        return width, height

    def _filter(self, node: Node) -> str:
        way = self._reader.text(node, "upscale_method")
        if way not in _FILTERS:
            raise Stopped(f"{node} enlarges with the method `{way}`, which civman does not support")
        return way

    def _encoded(self, node: Node) -> Enlarged:
        """Read an enlargement between two passes in which the image is decoded, enlarged and encoded again."""
        self.found.vaes.append(self._reader.vae(node.inputs.get("vae")))
        steps, image = self._resized(node)
        if image.kind not in ("VAEDecode", "VAEDecodeTiled"):
            raise self._reader.unknown(image, "the image between the passes")
        self._decoded(image)
        return self._between(node, steps)

    def _resized(self, node: Node) -> tuple[list[Node], Node]:
        """Return the nodes, in order, that resize the image encoded by `node`, and the node that makes this image."""
        steps: list[Node] = []
        image = self._reader.node(node.inputs.get("pixels"), f"the image that {node} encodes")
        while image.kind in ("ImageScale", "ImageScaleBy", "ImageUpscaleWithModel") and len(steps) < _MOST_RESIZED:
            steps.insert(0, image)
            image = self._reader.node(image.inputs.get("image"), f"the image that {image} enlarges")
        return steps, image

    def _between(self, node: Node, steps: Sequence[Node]) -> Enlarged:
        models = [step for step in steps if step.kind == "ImageUpscaleWithModel"]
        scales = [step for step in steps if step.kind != "ImageUpscaleWithModel"]
        if len(models) > 1 or len(scales) > 1 or (models and steps[0] is not models[0]):
            raise Stopped(f"{steps[-1]} is one of several enlargements in a row, which civman does not support")
        name = ""
        if models:
            loader = self._reader.node(
                models[0].inputs.get("upscale_model"), f"the upscaler model that {models[0]} uses"
            )
            if loader.kind != "UpscaleModelLoader":
                raise self._reader.unknown(loader, "the upscaler model")
            name = self._reader.text(loader, "model_name")
        if not scales:
            if name:
                raise Stopped(f"{models[0]} has no ImageScale node after it, so the new size depends on its model")
            return Enlarged(self.found.width, self.found.height, "nearest-exact")
        [scale] = scales
        way = self._filter(scale)
        if scale.kind == "ImageScaleBy":
            if name:
                raise Stopped(
                    f"{scale} changes the size that an upscaler model makes, so the final size depends on that model"
                )
            factor = self._reader.number(scale, "scale_by")
            across, down = round(self.found.width * factor), round(self.found.height * factor)
        else:
            across, down = (self._reader.whole(scale, name) for name in ("width", "height"))
            across, down = self._kept_shape(scale, across, down)
        if across % 8 or down % 8:
            raise Stopped(f"{node} crops {across}x{down} pixels to multiples of 8, which civman does not support")
        return Enlarged(across, down, "model", name, way) if name else Enlarged(across, down, way)

    # ---------------------------------------------------------------- samplers
    def _ksampler(self, node: Node) -> Sampled:
        cfg, sampler = self._reader.number(node, "cfg"), self._reader.text(node, "sampler_name")
        schedule, steps = self._schedule(node, "scheduler"), self._steps(node)
        strength = self._reader.number(node, "denoise", 1.0)
        return self._made(node, self._reader.whole(node, "seed"), steps, cfg, sampler, schedule, strength)

    def _made(
        self, node: Node, seed: int, steps: int, cfg: float, sampler: str, schedule: Schedule, strength: float = 1.0,
        **more: Any,
    ) -> Sampled:  # fmt: skip
        model = self._reader.model(node.inputs.get("model"))
        positive = self._reader.conditioning(node.inputs.get("positive"))
        negative = None if cfg == 1 else self._reader.conditioning(node.inputs.get("negative"))
        return Sampled(node, model, positive, negative, seed, steps, cfg, sampler, schedule, strength, **more)

    def _steps(self, node: Node) -> int:
        """Read a node's number of steps. Raises: Stopped: the number is outside ComfyUI's limits."""
        steps = self._reader.whole(node, "steps")
        if not 1 <= steps <= _MOST_STEPS:
            raise Stopped(f"{node} has {steps} steps, but ComfyUI allows only 1 to {_MOST_STEPS}")
        return steps

    def _schedule(self, node: Node, name: str) -> Schedule:
        scheduler = self._reader.text(node, name)
        if scheduler not in SCHEDULES:
            raise Stopped(f"{node} uses the scheduler `{scheduler}`, which civman does not support")
        return SCHEDULES[scheduler]

    def _advanced(self, node: Node) -> Sampled:
        """Read a KSamplerAdvanced node; if it continues an earlier one, both together are read as one pass."""
        read = self._reader
        start, end, steps = (read.whole(node, name) for name in ("start_at_step", "end_at_step", "steps"))
        self._steps(node)
        cfg, sampler = read.number(node, "cfg"), read.text(node, "sampler_name")
        schedule = self._schedule(node, "scheduler")
        if end < steps:
            raise Stopped(f"{node} ends after {end} of {steps} steps, and no node with the same settings continues it")
        if read.value(node, "add_noise") in ("disable", False):
            return self._finishing(node, start, steps, (cfg, sampler, schedule))
        # skipping the first `start` steps of the schedule is the same as img2img with this strength
        strength = 1.0 if start == 0 else (steps - start) / (steps + 0.5)
        if start >= steps:
            raise Stopped(f"{node} starts at or after its last step, so it does nothing")
        return self._made(node, read.whole(node, "noise_seed"), steps - start, cfg, sampler, schedule, strength)

    def _finishing(self, node: Node, start: int, steps: int, settings: tuple[float, str, Schedule]) -> Sampled:
        """Join a KSamplerAdvanced node that adds no noise with the earlier node that began the pass."""
        read = self._reader
        before = read.node(node.inputs.get("latent_image"), f"the latents that {node} starts from")
        if before.kind != "KSamplerAdvanced":
            raise Stopped(f"{node} adds no noise, but does not continue another KSamplerAdvanced either")
        same = (read.number(before, "cfg"), read.text(before, "sampler_name"), self._schedule(before, "scheduler"))
        links = [(node.inputs.get(name), before.inputs.get(name)) for name in ("model", "positive", "negative")]
        is_same = same == settings and self._steps(before) == steps and all(a == b for a, b in links)
        begun = (read.whole(before, "start_at_step"), read.whole(before, "end_at_step"))
        leaves = read.value(before, "return_with_leftover_noise") in ("enable", True)
        adds = read.value(before, "add_noise") in ("enable", True)
        if not is_same or begun != (0, start) or not leaves or not adds:
            raise Stopped(f"{node} continues {before} with another model, prompt or settings (like a refiner), which "
                          "civman does not support")  # fmt: skip
        if settings[1] not in _MEMORYLESS:
            raise Stopped(
                f"{node} continues {before}, where the sampler `{settings[1]}` loses its state from the earlier "
                "steps, which civman does not support"
            )
        cfg, sampler, schedule = settings
        return self._made(before, read.whole(before, "noise_seed"), steps, cfg, sampler, schedule)

    def _custom(self, node: Node) -> Sampled:
        if self._reader.value(node, "add_noise") is False:
            raise Stopped(f"{node} adds no noise, which civman does not support")
        seed, cfg = self._reader.whole(node, "noise_seed"), self._reader.number(node, "cfg")
        return self._with_sigmas(node, node, seed, cfg)

    def _custom_advanced(self, node: Node) -> Sampled:
        noise = self._reader.node(node.inputs.get("noise"), f"the noise that {node} adds")
        if noise.kind != "RandomNoise":
            raise self._reader.unknown(noise, "the noise")
        guider = self._reader.node(node.inputs.get("guider"), f"the guider that {node} uses")
        if guider.kind == "BasicGuider":
            inputs, cfg = {**guider.inputs, "positive": guider.inputs.get("conditioning")}, 1.0
        elif guider.kind == "CFGGuider":
            inputs, cfg = dict(guider.inputs), self._reader.number(guider, "cfg")
        else:
            raise self._reader.unknown(guider, "the guidance")
        whole = Node(node.id, node.kind, {**inputs, **node.inputs})
        return self._with_sigmas(node, whole, self._reader.whole(noise, "noise_seed"), cfg)

    def _with_sigmas(self, node: Node, whole: Node, seed: int, cfg: float) -> Sampled:
        named = self._reader.node(node.inputs.get("sampler"), f"the sampler that {node} uses")
        sampler, more = self._sampler_node(named)
        schedule, steps, strength, sigmas = self._sigmas(node.inputs.get("sigmas"), sampler)
        return self._made(whole, seed, steps, cfg, sampler, schedule, strength, sigmas=sigmas, **more)

    def _sampler_node(self, node: Node) -> tuple[str, dict[str, float]]:
        read = self._reader
        if node.kind == "KSamplerSelect":
            return read.text(node, "sampler_name"), {}
        named = {
            "SamplerEulerAncestral": "euler_ancestral", "SamplerDPMPP_SDE": "dpmpp_sde",
            "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde", "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
        }.get(node.kind)  # fmt: skip
        if named is None or read.number(node, "r", 0.5) != 0.5:
            raise read.unknown(node, "the sampler")
        if "solver_type" in node.inputs and read.text(node, "solver_type") == "heun":
            named = "dpmpp_2m_sde_heun"
        if "noise_device" in node.inputs and read.text(node, "noise_device") == "gpu":
            named += "_gpu"
        return named, {"eta": read.number(node, "eta", 1.0), "s_noise": read.number(node, "s_noise", 1.0)}

    def _sigmas(self, link: object, sampler: str) -> tuple[Schedule, int, float, tuple[float, ...]]:
        """Return the schedule, steps and strength of a sigma node, or its noise levels if no schedule produces them."""
        node = self._reader.node(link, "the noise levels")
        read = self._reader
        if node.kind == "SplitSigmas":
            whole = self._levels(node.inputs.get("sigmas"))
            step = read.whole(node, "step")
            found = whole[: step + 1] if isinstance(link, Link) and link.output == 0 else whole[step:]
            return Schedule.NORMAL, len(found) - 1, 1.0, tuple(found)
        if node.kind == "BasicScheduler" and sampler not in ("dpm_2", "dpm_2_ancestral"):
            return (
                self._schedule(node, "scheduler"), self._steps(node), read.number(node, "denoise", 1.0), ()
            )  # fmt: skip
        levels = tuple(self._levels(link))
        return Schedule.NORMAL, len(levels) - 1, 1.0, levels

    def _levels(self, link: object) -> list[float]:
        """Compute the noise levels of a sigma node as ComfyUI does."""
        node, read = self._reader.node(link, "the noise levels"), self._reader
        levels = NoiseLevels.of_model(program="comfyui")
        steps = self._steps(node) if "steps" in node.inputs else 0
        if node.kind == "BasicScheduler":
            share = read.number(node, "denoise", 1.0)
            whole = int(steps / share) if 0 < share < 1 else steps
            return table_of(self._schedule(node, "scheduler"), whole, levels)[-(steps + 1) :]
        if node.kind == "BetaSamplingScheduler":
            if (read.number(node, "alpha", 0.6), read.number(node, "beta", 0.6)) != (0.6, 0.6):
                raise Stopped(f"{node} uses a beta distribution with other parameters than civman's")
            return table_of(Schedule.BETA, steps, levels)
        if node.kind == "SDTurboScheduler":
            begin = 10 - int(10 * read.number(node, "denoise", 1.0))
            times = [100 * place - 1 for place in range(10, 0, -1)][begin : begin + steps]
            return [*(single(levels.sigma(time)) for time in times), 0.0]
        if node.kind not in ("KarrasScheduler", "ExponentialScheduler", "PolyexponentialScheduler") or steps < 1:
            raise self._reader.unknown(node, "the noise levels")
        low, high = read.number(node, "sigma_min"), read.number(node, "sigma_max")
        return _spaced(node.kind, steps, low, high, read.number(node, "rho", 7.0 if node.kind[0] == "K" else 1.0))


def table_of(schedule: Schedule, steps: int, levels: NoiseLevels) -> list[float]:
    """Compute a schedule's noise levels as ComfyUI does. Raises: Stopped: the number of steps is not supported."""
    if not 1 <= steps <= _MOST_STEPS:
        raise Stopped(f"the graph has a schedule of {steps} steps, but civman supports only 1 to {_MOST_STEPS}")
    try:
        return table(schedule, steps, levels)
    except (ValueError, ZeroDivisionError, UsageError) as error:
        raise Stopped(f"the schedule {schedule} has no noise levels for {steps} steps") from error


def _spaced(kind: str, steps: int, low: float, high: float, rho: float) -> list[float]:
    """Compute Karras, exponential or polyexponential noise levels, rounded to single precision as in k-diffusion."""
    if not 0 < low < high or rho <= 0:
        raise Stopped("the graph's noise levels do not decrease")
    if kind == "KarrasScheduler":
        ends = [sigma ** (1 / rho) for sigma in (low, high)]
        width = single(ends[0] - ends[1])
        shares = single_precision.line(0, 1, steps)
        return [*(single(single(single(ends[1]) + single(share * width)) ** rho) for share in shares), 0.0]
    logs = [math.log(sigma) for sigma in (low, high)]
    if kind == "ExponentialScheduler":
        return [*(single(math.exp(log)) for log in single_precision.line(logs[1], logs[0], steps)), 0.0]
    ramp = [single(share**rho) for share in single_precision.line(1, 0, steps)]
    width = single(logs[1] - logs[0])
    return [*(single(math.exp(single(single(share * width) + single(logs[0])))) for share in ramp), 0.0]


def _has_image(node: Node) -> bool:
    return isinstance(node.inputs.get("images", node.inputs.get("image")), Link)
