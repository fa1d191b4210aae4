"""STS-B as both benchmarks judge by it: dev and half of the test pairs."""

import csv
from pathlib import Path

from ingot.data.data import Data
from ingot.data.load import load_data
from ingot.models.model import Model

SETTINGS = """
name = "stsb"
task = "similarity"
columns = {{text = "sentence1", text_b = "sentence2", target = "score"}}

[splits.calibration]
file = "{train}"
take = 128

[splits.test]
file = "{test}"
"""
TRAINING = """
[splits.training]
file = "{train}"
"""


def stsb(model: Model, shared: Path, work: Path, *, training: bool = False) -> Data:
    """Return STS-B in this model's tokens; `work/stsb.toml` describes it for the command line.

    With `training`, calibration and training rows share no sentence with the rows that are judged.
    """
    folder, settings, test = (shared / "stsb").resolve(), work / "stsb.toml", work / "test.csv"
    dev, half = ((folder / name).read_text() for name in ("dev.csv", "test_a.csv"))
    # 690 pairs of test_a alone decide too little
    test.write_text(dev.rstrip("\n") + "\n" + half.partition("\n")[2])
    train = folder / "train.csv"
    if training:
        train = _without_known(train, test, work / "train.csv")
    text = SETTINGS + (TRAINING if training else "")
    settings.write_text(text.format(train=train, test=test))
    return load_data(settings, tokenizer=model.tokenizer_path)


def _without_known(source: Path, test: Path, target: Path) -> Path:
    """Write the rows of `source` none of whose sentences the test rows hold."""
    with test.open(newline="", encoding="utf-8") as stream:
        known = {row[k] for row in csv.DictReader(stream) for k in ("sentence1", "sentence2")}
    with source.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        fresh = [r for r in rows if not {r["sentence1"], r["sentence2"]} & known]
        names = list(rows.fieldnames or ())
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(fresh)
    return target
