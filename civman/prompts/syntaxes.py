"""Parse a prompt with the syntax that a recipe's emphasis rule specifies."""

from civman.prompts import comfyui_syntax
from civman.prompts.emphasis import Fragment, ParsedPrompt, parse


def parse_by(rule: str, prompt: str) -> ParsedPrompt:
    """Parse a prompt by a recipe's emphasis rule: as plain text ("none"), by ComfyUI's syntax ("comfyui") or A1111's.

    Raises: the errors of `parse`.
    """
    if rule == "comfyui":
        return comfyui_syntax.parse(prompt)
    parsed = parse(prompt)
    if rule != "none":
        return parsed
    return ParsedPrompt(parsed.text, ((Fragment(parsed.text, 1.0),),), parsed.loras)
