"""Complete a request for a flow-matching model, and refuse the options that such models do not have."""

from civman.diffusion import sampler_names, samplers, sampling_plan
from civman.diffusion.noise_levels import Schedule
from civman.domain.recipes.recipe import RenderRequest
from civman.errors import Cause, UsageError
from civman.planning.find_files import Found
from civman.planning.flow_plan import FlowChoice, with_defaults


def for_flow(request: RenderRequest, choice: FlowChoice) -> tuple[RenderRequest, samplers.Sampler, Schedule]:
    """Fill in a flow-matching family's defaults. Raises: UsageError: an option that its models do not have."""
    unknown = {
        "--embedding": request.embeddings, "--hypernetwork": request.hypernetworks, "--prediction": request.prediction,
        "--thresholding": request.thresholding, "--emphasis comfyui": request.emphasis == "comfyui",
        "--sampling-rules comfyui": request.sampling_rules == "comfyui", "--sigmas": request.sigmas,
        "--freeu": request.freeu, "--cfg-rescale-v": request.rescales_velocity, "--join-prompt": request.prompt_parts,
        "--join-negative": request.negative_parts, "--told-sizes": request.told_sizes,
        "--reference": request.references,
    }  # fmt: skip
    if asked := [option for option, value in unknown.items() if value]:
        raise UsageError(f"{asked[0]} has no meaning for {choice.family.title}", code=Cause.BAD_CONFIG)
    if request.config and not request.config.startswith("{"):
        raise UsageError(f"--config is not read for {choice.family.title}", code=Cause.BAD_CONFIG)
    request = with_defaults(request, choice)
    sampler, schedule = sampler_names.parse(request.sampler or "", request.schedule)
    if schedule is Schedule.AUTOMATIC:
        schedule = Schedule(choice.defaults.schedule)
    sampling_plan.require_flow(sampler, schedule)
    return request, sampler, schedule


def require_no_flow_options(request: RenderRequest, found: Found) -> None:
    """Check that a request for another model has no option of flow matching. Raises: UsageError."""
    parts = [part for part in request.parts if not part.startswith("clip-vision=")]  # the encoder of an IP-Adapter
    asked = {
        "--part": parts, "--variant": request.variant, "--shift": request.shift, "--guidance": request.guidance,
    }  # fmt: skip
    if given := [option for option, value in asked.items() if value]:
        raise UsageError(
            f"{given[0]} has no meaning for `{found.inspected.name}`: the model is not a flow-matching transformer",
            code=Cause.BAD_CONFIG,
        )


def usual_precision(device: str | None, *, is_flow: bool = False, is_there: bool = False) -> str:
    """Return the precision that a device computes in by default; `is_flow`: of a flow-matching model.

    `is_there`: the device is known to exist, so torch is not imported to check it.
    """
    if device == "cpu":
        return "float32"
    if device is not None and is_there:
        return "bfloat16" if is_flow else "float16"
    # imports torch (2 s), which is needed to detect the devices
    from civman.diffusion.environment import choose_device, choose_dtype

    usual = str(choose_dtype(choose_device(device))).removeprefix("torch.")
    # the activations of some transformers exceed float16
    return "bfloat16" if is_flow and usual == "float16" else usual
