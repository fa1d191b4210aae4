"""Random encoders on every instruction set against the quantized reference in numpy."""

import sys
from pathlib import Path

import numpy as np
from _minilm import exact
from _results import Section

from ingot_native import Encoder, TransformerSpec, granted_sets, pack

sys.path.insert(0, str(Path(__file__).parents[1] / "native" / "tests"))
from closeness import REACH, UNIT, check_answer  # the tests of the engine lie beside it
from tiny_models import random_sequences, random_tensors

CASES = 10_000
BF16 = ("avx512-vnni-bf16", "amx")


def correctness(shared: Path, work: Path) -> Section:
    """Compare answers on random networks, lengths and batches, by the bound that was asked for."""
    del shared, work
    section, names = Section(), granted_sets()
    for isa in names:
        exactly, ties, wrong = _compare(isa)
        section.claims += [
            exact(
                f"{isa}: answers beyond the bound, of {CASES:,} random encoders", ties + wrong,
                "cases", "0", met=ties + wrong == 0,
                note=f"{ties} of them have a code at a tie, which may fall to either side",
            ),
            exact(
                f"{isa}: of these, not the reference's with codes at ties on the other side", wrong,
                "cases", "0", met=wrong == 0,
                note=f"a tie: within {REACH / UNIT:.0f} x 2^-24 of its row's largest of the middle",
            ),
        ]  # fmt: skip
        section.rows.setdefault("cases", []).append([isa, exactly, ties, wrong])
    return section


def _compare(isa: str) -> tuple[int, int, int]:
    """Return how many cases agree, agree but for a code at a tie, and do not agree."""
    counts, rng = [0, 0, 0], np.random.default_rng(0)
    for case in range(CASES):
        spec = _spec(rng)
        tensors = random_tensors(spec, case)
        lengths = rng.integers(1, spec.positions + 1, rng.integers(1, 5)).tolist()
        sequences = random_sequences(spec, lengths)
        with Encoder(pack(spec, tensors), threads=1 + case % 2, isa=isa) as encoder:
            got = encoder.encode(sequences)
        try:
            asked = check_answer(got, spec, tensors, sequences, bf16=isa in BF16)
        except AssertionError:
            counts[2] += 1
            continue
        counts[asked > 0] += 1
    return counts[0], counts[1], counts[2]


def _spec(rng: np.random.Generator) -> TransformerSpec:
    """Draw a small network of any kind that the engine runs."""
    kv_heads, norm_first = int(rng.integers(1, 4)), bool(rng.integers(2))
    position, layers = _one(rng, "absolute", "rotary", "relative", "none"), int(rng.integers(1, 3))
    is_rotary = position == "rotary"
    return TransformerSpec(
        layers=layers, hidden=int(rng.integers(32, 131)), heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads, head_dim=int(rng.choice([8, 16, 20, 32, 48, 64])),
        inner=int(rng.integers(32, 201)), vocab=30, positions=int(rng.integers(1, 91)),
        position=position, norm=_one(rng, "layer", "rms"), norm_first=norm_first,
        final_norm=norm_first, activation=_one(rng, "gelu", "gelu-tanh", "relu", "silu"),
        gated=bool(rng.integers(2)), causal=bool(rng.integers(2)), epsilon=1e-6,
        rotary_dim=int(rng.choice([4, 8])) if is_rotary else 0,
        rotary_bases=(1000.0,) * layers if is_rotary else (),
        windows=tuple(int(w) for w in rng.integers(0, 41, layers)),
        pool=_one(rng, "tokens", "mean", "first", "last"),
    )  # fmt: skip


def _one(rng: np.random.Generator, *names: str) -> str:
    return str(rng.choice(names))
