"""Numbers for people: bytes, milliseconds, counts."""

_STEP = 1024


def show_bytes(size_bytes: float) -> str:
    """Return a size with a binary unit.

    Examples:
        >>> show_bytes(23_260_000)
        '22.2 MiB'
        >>> show_bytes(512)
        '512 B'
    """
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < _STEP:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= _STEP
    return f"{size:.1f} TiB"


def show_ms(latency_ms: float) -> str:
    """Return a latency with three significant digits and its unit.

    Examples:
        >>> show_ms(4.1349), show_ms(0.0123), show_ms(1534.0)
        ('4.13 ms', '12.3 us', '1.53 s')
    """
    if latency_ms < 0.1:
        return f"{latency_ms * 1000:.3g} us"
    if latency_ms < 1000:
        return f"{latency_ms:.3g} ms"
    return f"{latency_ms / 1000:.3g} s"


def show_number(number: int, noun: str, *, plural: str = "") -> str:
    """Return a whole number of things, in the singular or the plural.

    Args:
        number: How many.
        noun: What one of them is called.
        plural: What several are called; the noun and an s if not given.

    Examples:
        >>> show_number(1, "job"), show_number(0, "job"), show_number(3, "retry", plural="retries")
        ('1 job', '0 jobs', '3 retries')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def show_count(count: float) -> str:
    """Return a count with a decimal unit.

    Examples:
        >>> show_count(22_713_216), show_count(950)
        ('22.7 M', '950')
    """
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f}"
