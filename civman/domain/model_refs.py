"""Refs that mean no model: pictures and posts, where a command needs a model file."""

from civman.domain.refs import ImageRef, PictureRef, PostRef, Ref
from civman.errors import NotFound, UsageError


def require_model(ref: Ref) -> None:
    """Check that the ref is not a picture or a post, which the library cannot resolve.

    Raises: UsageError, NotFound: it is.
    """
    if isinstance(ref, PictureRef | PostRef):
        raise not_a_model(ref)
    if isinstance(ref, ImageRef):
        raise NotFound(
            f"{ref} is a picture on CivitAI; the library does not know which model made it",
            hint="`civman show` asks CivitAI which model it was",
        )


def not_a_model(ref: PictureRef | PostRef) -> UsageError:
    """The error for a ref to a picture or a post where a model is needed."""
    if isinstance(ref, PictureRef):
        return UsageError(
            f"`{ref}` is a picture, not a model file", hint="use it with `civman show` or `civman replay`"
        )
    return UsageError(f"{ref} is a post, which may show many pictures", hint="open it and copy the URL of one picture")
