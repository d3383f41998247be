"""Checks whether the packages that rendering needs are installed, without importing them."""

from importlib.util import find_spec

from civman.errors import CannotRender, Cause

_NEEDED = ("torch", "diffusers", "transformers", "safetensors", "tokenizers", "PIL")


def require_render_extra() -> None:
    """Check that all packages for rendering are installed.

    Raises: CannotRender (`no-render-extra`): says how to install them.
    """
    if missing := missing_parts():
        raise CannotRender(
            f"rendering needs packages that are not installed: {', '.join(missing)}",
            hint='install them with `pip install "civman[render]"`', code=Cause.NO_RENDER_EXTRA, missing=missing,
        )  # fmt: skip


def missing_parts() -> list[str]:
    """List the packages that rendering needs and that are not installed."""
    return [name for name in _NEEDED if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # an environment that blocks the import of a package raises this error
        return False
