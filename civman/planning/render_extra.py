"""Whether the libraries that rendering needs are installed. Imports none of them."""

from importlib.util import find_spec

from civman.errors import CannotRender, Cause

_NEEDED = ("torch", "diffusers", "transformers", "safetensors", "tokenizers", "PIL")


def require_render_extra() -> None:
    """Raises: CannotRender: `no-render-extra`, with the command that installs it."""
    if missing := missing_parts():
        raise CannotRender(
            f"rendering needs packages that are not installed: {', '.join(missing)}",
            hint='`pip install "civman[render]"` installs them', code=Cause.NO_RENDER_EXTRA, missing=missing,
        )  # fmt: skip


def missing_parts() -> list[str]:
    """Packages that rendering needs and that are not installed."""
    return [name for name in _NEEDED if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # some environments answer so for what they block
        return False
