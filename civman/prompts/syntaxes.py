"""Parse a prompt by the rule for emphasis that a recipe names."""

from civman.prompts import comfyui_syntax
from civman.prompts.emphasis import Fragment, ParsedPrompt, parse


def parse_by(rule: str, prompt: str) -> ParsedPrompt:
    """Parse a prompt; "none" reads plain text without brackets, `BREAK` or weights, "comfyui" follows ComfyUI's rules.

    Raises: the errors of `parse`.
    """
    if rule == "comfyui":
        return comfyui_syntax.parse(prompt)
    parsed = parse(prompt)
    if rule != "none":
        return parsed
    return ParsedPrompt(parsed.text, ((Fragment(parsed.text, 1.0),),), parsed.loras)
