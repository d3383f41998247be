# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Face restoration: networks as published, faces aligned as OpenCV aligns them, and images restored as by facexlib."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from face_models import fixture, ramp, samples, tensors_of

from civman.diffusion.face_codeformer import CodeFormer
from civman.diffusion.face_detector import FaceDetector
from civman.diffusion.face_geometry import alignment, inverted, resized, warped
from civman.diffusion.face_gfpgan import Gfpgan
from civman.diffusion.face_parser import FaceParser
from civman.diffusion.face_restoration import FaceModels, restored


def photo(height: int = 120, width: int = 168) -> np.ndarray:
    down, across = np.mgrid[:height, :width]
    parts = [128 + 100 * np.sin(down / (9 + 3 * n) + across / (13 - 2 * n)) for n in range(3)]
    return np.stack(parts, 2).clip(0, 255).astype(np.uint8)


def test_the_detector_finds_the_faces_that_facexlib_finds() -> None:
    wanted = np.array(fixture()["retinaface"]["boxes"])
    detector = FaceDetector(tensors_of("retinaface"))

    found = detector(resized(np.ascontiguousarray(photo()[..., ::-1]), (896, 640)))

    # facexlib's image is resized by OpenCV in whole numbers, so that values differ by one
    assert len(found.boxes) == len(wanted) > 0
    assert np.abs(found.boxes - wanted[:, :4]).max() < 2
    assert np.abs(found.scores - wanted[:, 4]).max() < 0.01
    assert np.abs(found.landmarks - wanted[:, 5:].reshape(-1, 5, 2)).max() < 2


def test_the_parser_scores_pixels_as_facexlib_s_does() -> None:
    assert samples(FaceParser(tensors_of("parsenet")).scores(ramp(64))) == pytest.approx(
        fixture()["parsenet"]["samples"], rel=1e-3, abs=1e-4
    )


@pytest.mark.parametrize("weight", [pytest.param(0.0, marks=pytest.mark.long), 0.5])
def test_codeformer_gives_what_the_published_network_gives(weight: float) -> None:
    found = samples(CodeFormer(tensors_of("codeformer"))(ramp(512), weight))

    assert found == pytest.approx(fixture()["codeformer"]["samples"][str(weight)], rel=1e-3, abs=1e-3)


def test_gfpgan_gives_what_the_published_network_gives_with_stored_noise() -> None:
    found = samples(Gfpgan(tensors_of("gfpgan"))(ramp(512)))

    assert found == pytest.approx(fixture()["gfpgan"]["samples"], rel=1e-3, abs=1e-3)


def test_an_image_is_restored_as_a1111_restores_it() -> None:
    stored = fixture()["gfpgan"]
    models = FaceModels(
        Gfpgan(tensors_of("gfpgan")), FaceDetector(tensors_of("retinaface")), FaceParser(tensors_of("parsenet"))
    )

    found, count = restored(photo(), models, 0.5)

    assert count == len(fixture()["retinaface"]["boxes"])
    assert np.abs(found.astype(int) - photo()).mean() == pytest.approx(stored["changed"], rel=0.05, abs=0.1)
    wanted = stored["image"]
    got = samples(torch.from_numpy(found.copy()))
    assert got[0] == pytest.approx(wanted[0], abs=0.5)
    assert np.abs(np.array(got) - wanted).max() <= 4, "OpenCV's arithmetic is in whole numbers"


@pytest.mark.parametrize(
    ("landmarks", "matrix"),
    [
        ([[30, 40], [70, 38], [52, 60], [35, 80], [66, 79]],
         [3.27071, -0.07178, 95.33957, 0.07178, 3.27071, 109.43241]),
        ([[200.5, 100.25], [260, 130], [215, 160], [170, 190], [240, 215]],
         [1.44123, 0.50635, -136.85277, -0.50635, 1.44123, 188.04561]),
        ([[10, 10], [20, 10], [15, 16], [11, 22], [90, 22]],
         [12.50545, 0.02075, 68.34206, -0.02075, 12.50545, 114.96596]),
        ([[300, 200], [280, 201], [290, 190], [299, 180], [282, 179]],
         [-6.3095, -0.10488, 2107.51896, 0.10488, -6.3095, 1475.7129]),
    ],
)  # fmt: skip
def test_faces_are_aligned_as_opencv_aligns_them_outliers_included(landmarks: Any, matrix: list[float]) -> None:
    assert alignment(landmarks).ravel() == pytest.approx(matrix, abs=2e-3)


def test_a_warp_there_and_back_keeps_smooth_colours() -> None:
    matrix = np.array([[1.5, 0.4, 20], [-0.4, 1.5, 60.0]])

    back = warped(warped(photo(), matrix, (400, 400)), inverted(matrix), (168, 120))

    assert np.abs(back[10:-10, 10:-10] - photo()[10:-10, 10:-10]).mean() < 1.5
