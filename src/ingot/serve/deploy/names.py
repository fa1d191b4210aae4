"""Names, quantities and labels as Kubernetes takes them."""

import re

from ingot.core.digest import hex_of
from ingot.core.errors import ServeError

LABEL_MOST = 63
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_IMAGE = re.compile(
    r"[a-z0-9]+([._-][a-z0-9]+)*(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_URI = re.compile(r"([a-z][a-z0-9+.-]*)://[^\s\"'{}]+")


def check_label(what: str, name: str, *, most: int = LABEL_MOST) -> str:
    """Return a name that Kubernetes takes for an object, as DNS (RFC 1123) does.

    Args:
        what: What is named, for the message.
        name: The name.
        most: Largest length; less than 63 where Kubernetes appends to it.

    Raises:
        ServeError: It is no such name.

    Examples:
        >>> check_label("name", "digits")
        'digits'
    """
    if not _LABEL.fullmatch(name) or len(name) > most:
        raise ServeError(
            f"A {what} must be 1 to {most} of a-z, 0-9 and '-', start with a letter and not end "
            f"with '-'; got {name!r}. Give another one."
        )
    return name


def label_from(name: str) -> str:
    """Return the nearest name that Kubernetes may take: dots and underscores become dashes.

    Examples:
        >>> label_from("mini_lm.v2")
        'mini-lm-v2'
    """
    return re.sub(r"[._]+", "-", name).strip("-")


def label_value(digest: str) -> str:
    """Return a digest cut to the 63 characters that a label may have; the rest cannot collide.

    Examples:
        >>> len(label_value("sha256:" + "ab" * 32))
        63
    """
    return hex_of(digest)[:LABEL_MOST]


def check_image(image: str) -> str:
    """Return a reference of a container image.

    Raises:
        ServeError: It is none.
    """
    if not _IMAGE.fullmatch(image):
        raise ServeError(
            "An image must be named REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST; got "
            f"{image!r}. Correct it."
        )
    return image


def check_quantity(what: str, value: str) -> str:
    """Return an amount of processor or memory, such as `500m`, `2` or `1Gi`.

    Raises:
        ServeError: It is none.
    """
    if not _QUANTITY.fullmatch(value) or float(re.sub(r"[A-Za-z]", "", value)) == 0:
        raise ServeError(
            f"{what} must be a quantity above 0 like 500m, 2 or 1Gi; got {value!r}. Correct it."
        )
    return value


def check_uri(what: str, value: str, *, schemes: tuple[str, ...] = ()) -> str:
    """Return a URI.

    Args:
        what: What it is, for the message.
        value: The URI.
        schemes: Those that are understood; any if empty.

    Raises:
        ServeError: It is none, or of a scheme that is not understood.
    """
    found = _URI.fullmatch(value)
    if not found:
        raise ServeError(f"{what} must be a URI like s3://bucket/path; got {value!r}. Correct it.")
    if schemes and found[1] not in schemes:
        raise ServeError(
            f"{what} must be a URI that starts with {', '.join(schemes)}; got {value!r}. "
            "Give it in one of these forms."
        )
    return value
