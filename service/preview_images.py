"""Pictures that an index holds, as the service shows them: decoded within limits and encoded anew.

An index may come from elsewhere. Whatever its bytes claim to be, a client gets pixels: nothing that was beside them in
the file (comments, positions, colour profiles, a second format behind the first), and never more of them than the
limits.
"""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 8 * 2**20
MOST_PIXELS = 2**22


class UnshowableImageError(ValueError):
    """The bytes are no picture that is shown; the message says why."""


def clean_png(content: bytes) -> bytes:
    """Decode a picture and encode its pixels as PNG.

    Args:
        content: A PNG, JPEG or WebP file of at most 8 MiB and 4 megapixels; of an animation, its first picture.

    Returns:
        A PNG file without metadata, turned upright where the file said how to.

    Raises:
        UnshowableImageError: If it is anything else.
    """
    if len(content) > MOST_BYTES:
        raise UnshowableImageError(f"it has {len(content)} bytes, and at most {MOST_BYTES} are shown")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size  # known from the header: nothing large is ever decoded
            if width * height > MOST_PIXELS:
                raise UnshowableImageError(f"it is {width}x{height}, and at most {MOST_PIXELS} pixels are shown")
            upright = ImageOps.exif_transpose(image)
            plain = upright.convert(_plain_mode(upright))
    except UnshowableImageError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnshowableImageError(
            f"it is no PNG, JPEG or WebP of a size that is shown ({type(error).__name__})"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, MemoryError) as error:
        # What Pillow raises of damaged files has many types.
        raise UnshowableImageError(f"it is damaged ({type(error).__name__})") from None
    stream = io.BytesIO()
    Image.frombytes(plain.mode, plain.size, plain.tobytes()).save(stream, format="PNG")
    return stream.getvalue()


def _plain_mode(image: Image.Image) -> str:
    """Return grey or colours, with transparency where there is any: modes that need nothing beside the pixels."""
    if image.has_transparency_data:
        return "LA" if image.mode in ("L", "LA", "1") else "RGBA"
    return "L" if image.mode in ("L", "1") else "RGB"
