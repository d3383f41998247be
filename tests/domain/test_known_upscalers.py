"""The table of upscaler models that are known by the names in pictures."""

import pytest

from civman.domain.digests import Sha256, sha256_from
from civman.domain.known_upscalers import known_upscaler, upscaler_with

ULTRASHARP = "a5812231fc936b42af08a5edba784195495d303d5b3248c24489ef0c4021fe01"


@pytest.mark.parametrize(
    ("name", "file", "is_commercial"),
    [
        ("4x-UltraSharp", "4x-UltraSharp", False),
        ("R-ESRGAN 4x+", "RealESRGAN_x4plus", True),
        ("R-ESRGAN 4x+ Anime6B", "RealESRGAN_x4plus_anime_6B", True),
        ("realesr-animevideov3", "realesr-animevideov3", True),
        ("ESRGAN_4x", "ESRGAN", True),
        (" 4X_FOOLHARDY_REMACRI", "4x_foolhardy_Remacri", False),
    ],
)
def test_a_name_in_a_picture_leads_to_the_file(name: str, file: str, is_commercial: bool) -> None:
    known = known_upscaler(name)

    assert known is not None
    assert (known.files[0], known.is_commercial) == (file, is_commercial)
    assert all(sha256_from(digest) == digest and upscaler_with(digest) is known for digest in known.sha256)


def test_a_digest_leads_to_the_model_and_unknown_ones_to_nothing() -> None:
    found = upscaler_with(Sha256(ULTRASHARP))

    assert found is not None
    assert found.names == ("4x-UltraSharp",)
    assert known_upscaler("4x-UltraBlunt") is None
    assert upscaler_with(Sha256("0" * 64)) is None
