"""SST-2, sentences of film reviews with a label 0 (negative) or 1 (positive), from a folder."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from ingot_workloads.sst2_encoder.model import MAX_TOKENS, VOCABULARY

CLASSES = ("negative", "positive")
CALIBRATION = 256  # sentences of train.tsv that are not trained on
UNKNOWN = "[UNK]"
TEST_FILES = ("test_a.tsv", "dev.tsv")
Rows = tuple[list[str], list[int]]


def read(path: Path) -> Rows:
    """Return sentences and labels of a tab-separated file with the header `sentence`, `label`."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"] for row in rows], [int(row["label"]) for row in rows]


def parts(folder: Path, seed: int = 0) -> dict[str, Rows]:
    """Return the sentences of `training`, `calibration` and `test`, disjoint.

    `test` is `test_a.tsv` and `dev.tsv` together: no choice was made on either, and 1,772 sentences
    decide more than 872. A sentence of train.tsv that the test holds too is left out of training.
    """
    test: Rows = ([], [])
    for name in TEST_FILES:
        texts, labels = read(folder / name)
        test[0].extend(texts)
        test[1].extend(labels)
    known = set(test[0])
    rows = zip(*read(folder / "train.tsv"), strict=True)
    fresh = list({text: label for text, label in rows if text not in known}.items())
    order = np.random.default_rng(seed).permutation(len(fresh)).tolist()
    chosen = {"calibration": order[:CALIBRATION], "training": order[CALIBRATION:]}
    found = {
        name: ([fresh[i][0] for i in index], [fresh[i][1] for i in index])
        for name, index in chosen.items()
    }
    return found | {"test": test}


def train_tokenizer(sentences: list[str], size: int = VOCABULARY) -> Any:  # Any: no types there
    """Return a WordPiece tokenizer whose vocabulary is made of these sentences.

    References:
        Wu et al., Google's Neural Machine Translation System, 2016, section 4.1. arXiv:1609.08144
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", UNKNOWN, "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()  # with [PAD], which is token 0
    return tokenizer


def load(folder: Path, tokenizer: Any, seed: int = 0) -> "ingot.Data":
    """Return the splits as `input_ids` and `attention_mask`, int64 `(rows, longest)`."""
    splits = {}
    for name, (texts, labels) in parts(folder, seed).items():
        encoded = tokenizer.encode_batch(texts)
        inputs = {
            "input_ids": np.array([row.ids for row in encoded], dtype=np.int64),
            "attention_mask": np.array([row.attention_mask for row in encoded], dtype=np.int64),
        }
        splits[name] = ingot.Split(inputs, np.array(labels, dtype=np.int64), labels=tuple(texts))
    return ingot.make_data(splits, task="classification", classes=CLASSES, name="sst2")
