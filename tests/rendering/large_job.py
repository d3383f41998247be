"""A job of many images of three models in turn: `large_job.py COUNT FOLDER [WHERE]`. It resumes a stopped job."""

import sys
from pathlib import Path

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.render_request import LoraRequest, RenderRequest
from civman.library import Library

MODELS = ("tiny-sd1", "tiny-sd2", "tiny-sdxl")


def request(number: int) -> RenderRequest:
    loras = (LoraRequest("ink"),) if number % 6 == 0 else ()
    return RenderRequest(
        MODELS[number % 3], f"image {number}", seed=number, loras=loras, width=64, height=64, steps=2,
        guidance_scale=1.0, sampler="Euler",
    )  # fmt: skip


def main(count: int, folder: Path, where: str | None = None) -> None:
    with Library.open() as library:
        plans = [library.plan(request(number)) for number in range(count)]
        library.render(plans, output=folder, machine=Machine("cpu", threads=1), on=where, resume=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
