"""The file extensions that civman knows, in one table: those of models, and those of other files."""

from typing import Final

SAFETENSORS_SUFFIXES: Final = frozenset({".safetensors", ".sft"})
"""Extensions of safetensors files; both are the same format."""
PICKLE_SUFFIXES: Final = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
"""Extensions of pickle files; loading one could run code."""
GGUF_SUFFIX: Final = ".gguf"
MODEL_SUFFIXES: Final = SAFETENSORS_SUFFIXES | PICKLE_SUFFIXES | {GGUF_SUFFIX, ".onnx"}
ARCHIVE_SUFFIXES: Final = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst"})
CONFIG_SUFFIXES: Final = frozenset({".yaml", ".yml"})
PICTURE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".bmp", ".jxl", ".heic"})
VIDEO_SUFFIXES: Final = frozenset({".mp4", ".webm", ".mov", ".mkv", ".avi"})
TEXT_SUFFIXES: Final = frozenset({".txt", ".md", ".html", ".htm", ".pdf", ".csv", ".log", ".rst", ".rtf", ".url"})
UNFINISHED_SUFFIXES: Final = frozenset(
    {
        ".aria2", ".aria2__temp", ".part", ".partial", ".crdownload", ".incomplete", ".tmp", ".temp", ".download",
        ".opdownload", ".filepart", ".!ut", ".!qb", ".bc!", ".ytdl", ".downloading", ".unfinished", ".swp", ".lock",
    }
)  # fmt: skip
"""Extensions of files that a download or another program has not finished writing."""
CONTROL_SUFFIXES: Final = (".aria2", ".part", ".crdownload", ".incomplete", ".ytdl", ".st", ".!ut", ".!qb")
"""Suffixes of control files: while a file with the name `NAME` plus one of them exists, `NAME` is unfinished."""


def suffix_of(name: str) -> str:
    """Return the extension of a file name in lower case, with its dot; empty if there is none."""
    head, dot, tail = name.rpartition(".")
    return f".{tail.lower()}" if dot and head.strip(".") else ""


def is_unfinished(name: str) -> bool:
    """Whether the name has an extension that programs give to files that they have not finished writing."""
    return suffix_of(name) in UNFINISHED_SUFFIXES or name.endswith("~") or name.startswith(("~$", ".~"))
