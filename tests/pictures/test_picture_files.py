"""Pictures as files: texts survive every format to the letter, and a cut or damaged file is an error."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from civman.errors import UsageError
from civman.pictures import image_text, parameters_text
from civman.pictures.parameters_text import Generation, Part

FORMATS = ("png", "jpeg", "webp")
SMALL = np.arange(16 * 24 * 3, dtype=np.uint32).reshape(16, 24, 3).astype(np.uint8)
RECORD = '{"schema":1,"prompt":"猫 \\"é\\" <&> 😀","seed":9007199254740993}'


def text_of(prompt: str = "a cat, 猫 😀") -> str:
    lora = Part("my lora v1.2", autov3="0123456789ab", scale=-0.75)
    return parameters_text.text(
        Generation(prompt, "blurry", 20, "Euler a", 7.5, 123, 512, 768, "civman 0.3", loras=(lora,))
    )


def damaged(data: bytes) -> UsageError:
    with pytest.raises(UsageError) as caught:
        image_text.read(data)
    assert caught.value.code == "bad-picture"
    return caught.value


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None)
@given(record=st.none() | st.text(), prompt=st.text())
def test_record_and_parameters_come_back_to_the_letter(form: Any, record: str | None, prompt: str):
    written = text_of(prompt)

    carried = image_text.read(image_text.write(SMALL, record=record, parameters=written, format=form))

    assert (carried.record, carried.parameters) == (record, written)
    assert (carried.format, carried.size) == (form, (24, 16))


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_picture_is_the_same_bytes(form: Any):
    first, second = (image_text.write(SMALL, record=RECORD, parameters=text_of(), format=form) for _ in range(2))

    assert first == second


@pytest.mark.parametrize("form", FORMATS)
def test_without_texts_there_is_nothing_of_them_in_the_file(form: Any):
    data = image_text.write(SMALL, record=None, parameters=None, format=form)

    carried = image_text.read(data)

    assert (carried.record, carried.parameters, carried.entries) == (None, None, {})
    assert b"civman" not in data


@pytest.mark.parametrize("form", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(form: Any):
    data = image_text.write(SMALL, record=None, parameters=text_of(), format=form)

    assert np.array_equal(image_text.pixels(data), SMALL)


def test_a_jpeg_keeps_colours_at_full_size_and_close():
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, 1::2, 0] = 255

    pixels = image_text.pixels(image_text.write(red, record=None, parameters=None, format="jpeg"))

    assert int(np.abs(pixels.astype(int) - red).max()) < 40  # subsampled, the columns would run together


_PARSED: list[Image.Image] = []
"""Kept, because sd-parsers remembers a JPEG's text by the image's `id`, which a later image could get."""


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("prompt", ["plain", 'quotes "and", commas:\nlines', "猫が座っている 😀", "x" * 2000])
def test_sd_parsers_reads_the_file(form: Any, prompt: str):
    data = image_text.write(SMALL, record=RECORD, parameters=text_of(prompt), format=form)

    _PARSED.append(image := Image.open(io.BytesIO(data)))
    info = ParserManager().parse(image)

    assert info is not None
    assert info.full_prompt == f"{prompt} <lora:my lora v1.2:-0.75>"
    assert info.samplers[0].parameters["seed"] == "123"


def test_latin_1_goes_into_a_text_chunk_and_more_into_an_international_one():
    latin = image_text.write(SMALL, record=None, parameters=text_of("é ü ß"), format="png")
    more = image_text.write(SMALL, record=None, parameters=text_of("猫"), format="png")

    assert b"tEXtparameters\0" in latin
    assert b"iTXtparameters\0" in more


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_the_user_comment_is_utf_16_with_the_big_end_first(form: Any):
    data = image_text.write(SMALL, record=None, parameters=text_of(), format=form)

    with Image.open(io.BytesIO(data)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]

    assert comment == b"UNICODE\0" + text_of().encode("utf-16-be")


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_of_a_picture_is_an_error_in_words(form: Any):
    data = image_text.write(SMALL, record=RECORD, parameters=text_of(), format=form)

    for length in range(len(data)):
        assert damaged(data[:length]).hint


def test_every_flipped_byte_of_a_png_is_an_error_or_leaves_the_texts_alone():
    data = image_text.write(SMALL, record=RECORD, parameters=text_of(), format="png")

    for at in range(8, len(data), 3):
        damaged(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])


@pytest.mark.parametrize("form", ["jpeg", "webp"])
@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
@example(at=1036, bit=0)  # in the JPEG, a bit of the height
def test_damage_never_ends_in_anything_but_an_answer_or_an_error(form: Any, at: int, bit: int):
    data = bytearray(image_text.write(SMALL, record=RECORD, parameters=text_of(), format=form))
    data[at % len(data)] ^= 1 << bit

    try:
        width, height = image_text.read(bytes(data)).size
    except UsageError as error:
        seen, flipped = error.code, 0
    else:  # neither format has a checksum: the flipped bit may be one of the size, which WebP stores less one
        seen = "size"
        flipped = min(
            (width - less ^ 24 - less).bit_count() + (height - less ^ 16 - less).bit_count() for less in (0, 1)
        )

    assert seen in ("size", "bad-picture")
    assert flipped <= 1


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"RIFF\4\0\0\0WEBP", b"\xff\xd8\xff\xd9", b"GIF89a"]
)
def test_what_is_no_picture_is_an_error(data: bytes):
    damaged(data)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.png.*No such file"):
        image_text.read(tmp_path / "gone.png")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    data = image_text.write(SMALL, record=None, parameters=None, format="png")
    return data[:33] + b"".join(chunks) + data[33:]


def test_a_small_chunk_that_unpacks_to_gigabytes_is_refused():
    bomb = zlib.compress(bytes(80 * 1024 * 1024), 9)

    error = damaged(png_with(chunk(b"zTXt", b"workflow\0\0" + bomb)))

    assert "truncated or too large" in error.message


def test_texts_that_are_too_much_together_are_refused():
    half = chunk(b"tEXt", b"a\0" + bytes(40 * 1024 * 1024))

    assert "more text" in damaged(png_with(half, half)).message


def test_a_size_beyond_sense_is_refused_before_anything_is_decoded():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    assert "60000x60000" in damaged(data).message


def test_two_records_that_differ_are_refused():
    def record(text: bytes) -> bytes:
        return chunk(b"iTXt", b"civman\0\0\0\0\0" + text)

    assert image_text.read(png_with(record(b"{}"), record(b"{}"))).record == "{}"
    assert "two different records" in damaged(png_with(record(b"{}"), record(b'{"a":1}'))).message


def test_pixels_that_are_missing_are_an_error_though_every_checksum_fits():
    data = image_text.write(SMALL, record=RECORD, parameters=None, format="png")
    at = data.index(b"IDAT") - 4
    length = int.from_bytes(data[at : at + 4], "big")

    damaged(data[:at] + chunk(b"IDAT", data[at + 8 : at + 8 + length // 2]) + data[at + 12 + length :])


def test_large_packed_texts_of_others_are_read_beyond_pillows_own_limit():
    graph = json.dumps({"1": {"class_type": "Note", "inputs": {"text": "x" * 3_000_000}}})

    carried = image_text.read(png_with(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(graph.encode()))))

    assert carried.entries["workflow"] == graph


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_record_of_hundreds_of_kilobytes_fits(form: Any):
    record = json.dumps({"prompt": "a long tale of 猫 and <dogs> " * 10_000}, ensure_ascii=False)

    carried = image_text.read(image_text.write(SMALL, record=record, parameters=None, format=form))

    assert carried.record == record


def test_a_text_that_a_jpeg_cannot_hold_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match="a JPEG can contain at most") as caught:
        image_text.write(SMALL, record=None, parameters=text_of("x" * 40_000), format="jpeg")

    assert (caught.value.code, "PNG" in caught.value.hint) == ("text-too-long", True)
    for form in ("png", "webp"):
        data = image_text.write(SMALL, record=None, parameters=text_of("x" * 40_000), format=form)  # type: ignore[arg-type]
        assert image_text.read(data).parameters == text_of("x" * 40_000)


def test_a_picture_too_large_for_the_format_is_refused():
    with pytest.raises(UsageError) as caught:
        image_text.write(np.zeros((1, 17_000, 3), np.uint8), record=None, parameters=None, format="webp")

    assert caught.value.code == "unwritable-picture"


def test_damaged_exif_of_others_is_an_error_and_no_warning_of_pillows():
    data = image_text.write(SMALL, record=None, parameters=text_of(), format="jpeg")
    at = data.index(b"UNICODE")

    damaged(data[: at - 10] + b"\xff\xff" + data[at - 8 :])


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("tiff", ["<", ">"])
def test_user_comments_are_read_whichever_end_comes_first(order: str, tiff: str):
    comment = b"UNICODE\0" + text_of("一一一 Ā").encode(order)
    exif = Image.Exif()
    exif.endian = tiff
    exif.get_ifd(0x8769)[0x9286] = comment
    data = io.BytesIO()
    Image.fromarray(SMALL).save(data, "JPEG", exif=exif)

    assert image_text.read(data.getvalue()).parameters == text_of("一一一 Ā")


def test_transparency_palettes_and_grey_are_read_as_rgb():
    for mode in ("RGBA", "P", "L", "1", "I;16"):
        data = io.BytesIO()
        Image.new(mode, (3, 2)).save(data, "PNG")
        assert image_text.pixels(data.getvalue()).shape == (2, 3, 3)
