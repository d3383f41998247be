"""Format numbers together with a noun, for messages."""


def counted(count: int, noun: str) -> str:
    """Format a number with its noun, in the plural unless it is 1: "1 file", "1,200 files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
