"""Hostile files: refused with words, or run; never a crash, never memory that no file backs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingot_native import Packed, pack, write_packed
from tiny_models import BERT, KINDS, LLAMA, MODERN, random_tensors

CASES = os.environ.get("INGOT_NATIVE_MUTANTS", "300")
SMALL = {"layers": 1, "vocab": 20, "positions": 8}
LANGUAGE = {"pool": "tokens", "vocab_head": True, "normalize": False}


def four_bit_table() -> Packed:
    spec = replace(BERT, **SMALL)
    codes = np.random.default_rng(0).integers(-7, 8, (20, 48)).astype(np.int8)
    scales = np.full((20, 1), 0.1, np.float32)
    return pack(
        spec, random_tensors(spec, 1) | {"embed.tokens": codes, "embed.tokens_scale": scales}
    )


def packed(spec, **options) -> Packed:
    return pack(spec, random_tensors(spec, 1), **options)


FILES = {
    "encoder": lambda: packed(replace(BERT, **SMALL)),
    "rotary-encoder": lambda: packed(
        replace(MODERN, **SMALL, rotary_bases=(1e4,), windows=(3,), hidden=32)
    ),
    "classifier": lambda: packed(replace(KINDS["roberta-classifier"], **SMALL)),
    "table-in-four-bits": four_bit_table,
    "encoder-in-bf16": lambda: packed(replace(BERT, **SMALL), bits=16),
    "decoder": lambda: packed(
        replace(LLAMA, **SMALL, **LANGUAGE, rotary_bases=(1e4,), hidden=32, inner=32)
    ),
    "decoder-in-four-bits": lambda: packed(
        replace(LLAMA, **SMALL, **LANGUAGE, rotary_bases=(1e4,), hidden=32, inner=128, head_dim=16),
        bits=4,
        group=128,
    ),
    "decoder-in-bf16": lambda: packed(
        replace(LLAMA, **SMALL, **LANGUAGE, rotary_bases=(1e4,), hidden=32, inner=48), bits=16
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_refused_or_run(
    native: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    write_packed(FILES[kind](), tmp_path / "model.ingot")
    script = Path(__file__).with_name("mutants.py")
    command = [sys.executable, str(script), str(tmp_path / "model.ingot"), CASES, "0"]

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < int(CASES)
