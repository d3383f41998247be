"""The sources of noise that a recipe may specify: the CPU's random generator, or a graphics card's.

NVIDIA's generator gives numbers that depend on the card if an image has more values than the card has threads. A recipe
therefore contains the number of threads: `nv:43008` is an RTX 3060. `nv` alone means a card with more threads than
values.
"""

from typing import Final

THREADS: Final = {
    "gtx 1060": 20480, "gtx 1660": 22528, "rtx 2060": 30720, "gtx 1070": 30720, "rtx 2070": 36864, "rtx 4060": 36864,
    "t4": 40960, "gtx 1080": 40960, "rtx 3060": 43008, "rtx 3060 ti": 58368, "rtx 2080 ti": 69632, "rtx 3070": 70656,
    "rtx 4070": 70656, "rtx 3080": 104448, "rtx 3090": 125952, "v100": 163840, "rtx 4090": 196608, "a100": 221184,
}  # fmt: skip
"""Maps each graphics card to its number of threads.

That is the number of multiprocessors times the threads per multiprocessor, rounded down to a multiple of 256.

Source: NVIDIA's tables of the cards and their compute capabilities.
"""


def rng_of(text: str) -> str:
    """Convert the name of a graphics card to the noise source that recipes state for it, such as `nv:43008`.

    Any other text is only converted to lower case.

    >>> rng_of("RTX 3060")
    'nv:43008'
    """
    plain = " ".join(text.casefold().split())
    name = plain.removeprefix("nv:").removeprefix("nvidia").removeprefix(" geforce").strip()
    threads = THREADS.get(name) or THREADS.get(f"rtx {name}") or THREADS.get(f"gtx {name}")
    return f"nv:{threads}" if threads else plain
