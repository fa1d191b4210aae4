"""The native engine, measured: `python benchmarks/native_engine.py [SECTION ...]`.

Encoders and decoders beside every peer, interleaved in fresh processes. Run it alone. Needs the
shared data (`--data FOLDER`, `../shared/data` unless said), the extra `peers` and `./native`;
`decode` also an interpreter with llama-cpp-python, see `_llama.py`.
"""

import os
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "native_engine"
os.environ.setdefault("INGOT_HOME", str(WORK / "home"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

import _decoders  # noqa: E402 # the environment comes first
import _encoders  # noqa: E402
import _layers  # noqa: E402
import _native_cases  # noqa: E402
import _student  # noqa: E402
from _results import run_sections  # noqa: E402

COLUMNS = {
    "race": ["network", "shape", "threads", "runner", "ms", "runner / ours"],
    "sets": ["instruction set", "shape", "ms", "best peer with the same cap, ms", "peer / ours"],
    "layers": ["network", "batch", "part", "threads", "GMAC", "ms", "TOPS", "of the peak"],
    "cases": ["instruction set", "agree", "agree but for a code at a tie", "do not agree"],
    "decode": ["threads", "sequences", "runner", "prefill, tokens/s", "ms/step", "runner / ours"],
    "scores": ["runner", "cosine with the float network's scores", "with ours"],
    "quality": ["network", "form", "Spearman x 100", "lost, points", "MB", "sentences/s"],
}
SECTIONS = {
    "minilm": _encoders.minilm,
    "stsb": _encoders.stsb,
    "student": _student.student,
    "bert": _encoders.bert_shapes,
    "sets": _encoders.sets,
    "layers": _layers.layers,
    "start": _encoders.start,
    "decode": _decoders.decode,
    "correctness": _native_cases.correctness,
}

if __name__ == "__main__":
    run_sections("native_engine", SECTIONS, COLUMNS, WORK, about=__doc__)
