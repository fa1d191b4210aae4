"""Damage packed files in many ways and open them: run as a script, so that a crash is seen.

`python mutants.py FILE COUNT SEED` ends with 0 if every damaged file was refused or gave answers,
and writes how many gave answers.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ingot_native import Decoder, Encoder, NativeError, Packed, read_packed

ROOM = 256 << 20  # of address space above what importing took: no file here is larger than 1 MB
SIZES = (0, 1, -1, 3, 64, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**64, 10**30)

Header = dict
Damage = Callable[[np.random.Generator, bytes], bytes]


def split(data: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def whole(header: Header, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + body


def some(rng: np.random.Generator, header: Header) -> str:
    return str(rng.choice([name for name in header if name != "__metadata__"]))


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    first, last = (0, end) if rng.random() < 0.3 else (end, len(data))
    changed = bytearray(data)
    for place in rng.integers(first, last, rng.integers(1, 6)):
        changed[place] = int(rng.integers(256))
    return bytes(changed)


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data))]


def stretch(rng: np.random.Generator, data: bytes) -> bytes:
    return data + bytes(rng.integers(0, 256, rng.integers(1, 200)).astype(np.uint8))


def lie_about_header(rng: np.random.Generator, data: bytes) -> bytes:
    length = int(rng.choice(np.array(SIZES[:-1], object))) % 2**64
    return length.to_bytes(8, "little") + data[8:]


def resize(rng: np.random.Generator, data: bytes) -> bytes:
    header, body = split(data)
    entry = header[some(rng, header)]
    at = int(rng.integers(len(entry["shape"])))
    entry["shape"][at] = SIZES[rng.integers(len(SIZES))]
    if rng.random() < 0.3:
        entry["data_offsets"][1] = SIZES[rng.integers(len(SIZES))]
    return whole(header, body)


def move(rng: np.random.Generator, data: bytes) -> bytes:
    header, body = split(data)
    offsets = header[some(rng, header)]["data_offsets"]
    offsets[rng.integers(2)] = SIZES[rng.integers(len(SIZES))]
    return whole(header, body)


def swap(rng: np.random.Generator, data: bytes) -> bytes:
    """Exchange two tensors: their entries, their names or their places."""
    header, body = split(data)
    one, two = some(rng, header), some(rng, header)
    kind = rng.integers(3)
    if kind == 0:
        header[one], header[two] = header[two], header[one]
    elif kind == 1:
        places = header[one]["data_offsets"], header[two]["data_offsets"]
        header[two]["data_offsets"], header[one]["data_offsets"] = places
    else:
        header[one]["dtype"], header[two]["dtype"] = header[two]["dtype"], header[one]["dtype"]
    return whole(header, body)


def rename(rng: np.random.Generator, data: bytes) -> bytes:
    header, body = split(data)
    old, new = some(rng, header), some(rng, header)
    for a, b in (
        (".codes4", ".codes"),
        (".ratios", ".sums"),
        (".bf16", ".codes"),
        ("head.0", "embed.tokens"),
    ):
        if a in old and rng.random() < 0.7:
            new = old.replace(a, b)
            break
    return whole({new if name == old else name: entry for name, entry in header.items()}, body)


def respec(rng: np.random.Generator, data: bytes) -> bytes:
    header, body = split(data)
    spec = json.loads(header["__metadata__"]["spec"])
    for name in rng.choice(list(spec), rng.integers(1, 3)):
        value = spec[name]
        if isinstance(value, bool):
            spec[name] = not value
        elif isinstance(value, int):
            spec[name] = int(rng.choice([value + 1, value * 2, 2**20, 2**28, 65536, 1]))
        elif isinstance(value, str):
            spec[name] = str(rng.choice(["rotary", "none", "rms", "first", "tokens", "relative"]))
        else:
            spec[name] = [[], [1.0], [2**20] * 3, 1e30][rng.integers(4)]
    header["__metadata__"]["spec"] = json.dumps(spec)
    if rng.random() < 0.3:
        header["__metadata__"]["head_widths"] = json.dumps([SIZES[rng.integers(len(SIZES))]])
    return whole(header, body)


DAMAGES: tuple[Damage, ...] = (
    flip, cut, stretch, lie_about_header, resize, move, swap, rename, respec,
)  # fmt: skip


def use(packed: Packed) -> None:
    """Run what was read; answers may be anything."""
    positions = min(6, packed.spec.positions)
    ids = np.arange(positions) % packed.spec.vocab
    if packed.spec.vocab_head and packed.spec.causal:
        with Decoder(packed, threads=1, cache_tokens=64) as decoder:
            sequence = decoder.open_sequence()
            decoder.step([(sequence, ids)])
    with Encoder(packed, threads=1) as encoder:
        encoder.encode([ids])


def damaged(data: bytes, seed: tuple[int, int]) -> bytes:
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 3)):
        try:
            data = DAMAGES[rng.integers(len(DAMAGES))](rng, data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            break  # damaged beyond what this way of damage can read
    return data


def is_run(path: Path) -> bool:
    try:
        use(read_packed(path))
    except NativeError as error:
        if "There must be memory" in str(error):
            raise MemoryError("a damaged file asked for more memory than there is room") from error
        return False
    return True


def main(path: Path, count: int, seed: int) -> None:
    data, scratch = path.read_bytes(), path.with_suffix(".damaged")
    use(read_packed(path))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    ran = 0
    for number in range(count):
        sys.stderr.write(f"\rcase {number}")  # the last is what this process died of
        scratch.unlink(missing_ok=True)  # what is mapped must not change
        scratch.write_bytes(damaged(data, (seed, number)))
        ran += is_run(scratch)
    sys.stdout.write(str(ran))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
