"""Completes requests for flow-matching models, and refuses options that such models do not have."""

from civman.diffusion import sampler_names, samplers, sampling_plan
from civman.diffusion.noise_levels import Schedule
from civman.domain.recipes.recipe import RenderRequest
from civman.errors import Cause, UsageError
from civman.planning.find_files import Found
from civman.planning.flow_plan import FlowChoice, with_defaults


def for_flow(request: RenderRequest, choice: FlowChoice) -> tuple[RenderRequest, samplers.Sampler, Schedule]:
    """Fill in the family's defaults for what a request leaves open. Raises: UsageError: an option is not supported."""
    unknown = {
        "--embedding": request.embeddings, "--hypernetwork": request.hypernetworks,
        "--prediction": request.prediction not in (None, choice.family.prediction),
        "--thresholding": request.thresholding, "--emphasis comfyui": request.emphasis == "comfyui",
        "--sampling-rules comfyui": request.sampling_rules == "comfyui", "--sigmas": request.sigmas,
        "--freeu": request.freeu, "--cfg-rescale-v": request.rescales_velocity, "--join-prompt": request.prompt_parts,
        "--join-negative": request.negative_parts, "--told-sizes": request.told_sizes,
    }  # fmt: skip
    if asked := [option for option, value in unknown.items() if value]:
        raise UsageError(f"{asked[0]} has no effect on {choice.family.title}; leave it out", code=Cause.BAD_CONFIG)
    if request.config and not request.config.startswith("{"):
        raise UsageError(f"--config cannot be used with {choice.family.title}; leave it out", code=Cause.BAD_CONFIG)
    request = with_defaults(request, choice)
    sampler, schedule = sampler_names.parse(request.sampler or "", request.schedule)
    if schedule is Schedule.AUTOMATIC:
        schedule = Schedule(choice.defaults.schedule)
    sampling_plan.require_flow(sampler, schedule)
    return request, sampler, schedule


def require_no_flow_options(request: RenderRequest, found: Found) -> None:
    """Check that a request for another kind of model sets no option of flow matching. Raises: UsageError."""
    # ignore clip-vision: this is the encoder of an IP-Adapter, not a part of a flow-matching model
    parts = [part for part in request.parts if not part.startswith("clip-vision=")]
    asked = {
        "--part": parts, "--variant": request.variant, "--shift": request.shift, "--guidance": request.guidance,
    }  # fmt: skip
    if given := [option for option, value in asked.items() if value]:
        raise UsageError(
            f"{given[0]} is only for flow-matching models, and `{found.inspected.name}` is not one",
            code=Cause.BAD_CONFIG,
        )


def usual_precision(device: str | None, *, is_flow: bool = False, is_there: bool = False) -> str:
    """Return the precision in which a device computes by default. `is_flow`: for a flow-matching model.

    `is_there`: the device is known to exist, so torch need not be imported to check it.
    """
    if device == "cpu":
        return "float32"
    if device is not None and is_there:
        return "bfloat16" if is_flow else "float16"
    # imported here: the module imports torch, which takes 2 s and is only needed to detect the devices
    from civman.diffusion.environment import choose_device, choose_dtype

    usual = str(choose_dtype(choose_device(device))).removeprefix("torch.")
    # choose bfloat16, because the activations of some flow-matching transformers exceed the range of float16
    return "bfloat16" if is_flow and usual == "float16" else usual
