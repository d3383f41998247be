"""Control models that civman does not draw with are refused by name, and `check` says the same, from headers alone."""

import os
from pathlib import Path

import pytest

from civman.domain.compatibility import Verdict
from civman.errors import CannotRender, Incompatible
from civman.manage.inspection import Inspected, inspect_path
from civman.planning.check_files import check_files
from civman.planning.find_controls import require_fit
from tests.domain.rule_cases import CASES, CLASSES
from tests.headers import prefix

CHECKPOINTS = {
    "flux1": CASES["flux1"], "sd3": CASES["sd3"], "qwen-image": CASES["qwen-image"], "z-image": CASES["z-image-width"],
    "sd1": CASES["sd1-width"], "sdxl": CASES["sdxl-width"],
}  # fmt: skip
CONTROLS = {
    "flux1": ("controlnet-flux",), "sd3": ("controlnet-sd3",), "z-image": ("controlnet-z-image",),
    "qwen-image": ("controlnet-qwen-image", "controlnet-qwen-image-blocks"),
}  # fmt: skip


def inspected(folder: Path, name: str, tensors: dict[str, tuple[int, ...]]) -> Inspected:
    """A file with this header, without a byte of weights on the disk."""
    head, size = prefix({key: ("F16", [*shape]) for key, shape in tensors.items()})
    path = folder / f"{name}.safetensors"
    path.write_bytes(head)
    os.truncate(path, size)
    return inspect_path(path)


@pytest.mark.parametrize("base", CHECKPOINTS)
@pytest.mark.parametrize(("family", "control"), [(each, name) for each, names in CONTROLS.items() for name in names])
def test_a_familys_own_control_model_is_refused_by_name(tmp_path: Path, base: str, family: str, control: str) -> None:
    model, checkpoint = inspected(tmp_path, "guide", CASES[control]), inspected(tmp_path, "base", CHECKPOINTS[base])

    with pytest.raises(CannotRender if base == family else Incompatible) as caught:
        require_fit(model, checkpoint)
    (part,) = check_files(checkpoint, [("control", model)]).parts

    if base == family:
        assert f"is a control model for {family}: civman supports" in caught.value.message
        assert part.verdict is not Verdict.FITS
        assert part.reasons[0] == caught.value.message
    else:
        assert f"made for {family}, but the checkpoint is" in caught.value.message
        assert part.verdict is Verdict.CANNOT


@pytest.mark.parametrize(
    ("control", "base", "says"),
    [("controlnet-xs-sd1", "sd1", "a ControlNet-XS"), ("sparsectrl", "sd1", "a SparseCtrl"),
     ("control-lllite-sd1", "sd1", "a ControlNet-LLLite"), ("control-lllite-sdxl", "sdxl", "a ControlNet-LLLite")],
)  # fmt: skip
def test_other_kinds_of_control_models_are_refused_by_name(tmp_path: Path, control: str, base: str, says: str) -> None:
    model, checkpoint = inspected(tmp_path, "guide", CASES[control]), inspected(tmp_path, "base", CHECKPOINTS[base])

    with pytest.raises(CannotRender, match=f"`guide.safetensors` is {says}"):
        require_fit(model, checkpoint)


@pytest.mark.parametrize("name", [name for name in CLASSES if "Control" in name and "UNet" not in name])
def test_every_control_model_of_diffusers_is_either_drawn_or_refused_with_one_sentence(
    tmp_path: Path, name: str
) -> None:
    model = inspected(tmp_path, "guide", CLASSES[name])

    refused = []
    for base, tensors in CHECKPOINTS.items():
        try:
            require_fit(model, inspected(tmp_path, base, tensors))
        except (CannotRender, Incompatible) as error:
            refused.append(error)

    assert len(refused) >= len(CHECKPOINTS) - 1
    assert all(error.hint and "\n" not in error.message for error in refused)
