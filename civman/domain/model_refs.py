"""Reject refs to images and posts in commands that need a model file."""

from civman.domain.refs import ImageRef, PictureRef, PostRef, Ref
from civman.errors import NotFound, UsageError


def require_model(ref: Ref) -> None:
    """Check that a ref can refer to a model file, not to an image or a post.

    Raises: UsageError: it is an image made with this library, or a post. NotFound: it is an image on CivitAI.
    """
    if isinstance(ref, PictureRef | PostRef):
        raise not_a_model(ref)
    if isinstance(ref, ImageRef):
        raise NotFound(
            f"{ref} is an image on CivitAI; the library does not know which model made it",
            hint="`civman show` asks CivitAI which model made the image",
        )


def not_a_model(ref: PictureRef | PostRef) -> UsageError:
    """Build the error for a ref to an image or a post where a model is needed."""
    if isinstance(ref, PictureRef):
        hint = "pass the image to `civman show` or `civman replay`"
        return UsageError(f"`{ref}` is an image, not a model file", hint=hint)
    return UsageError(
        f"{ref} is a post, which may contain many images", hint="open the post and copy the URL of one image"
    )
