"""The handwritten digits that come with scikit-learn: 1,797 real scans, 8 x 8 pixels, 16 greys."""

import numpy as np

import ingot

DIGITS = tuple(str(digit) for digit in range(10))


def load(seed: int = 0) -> "ingot.Data":
    """Return the digits as `training` (45 %), `calibration` (10 %) and `test` (45 %), disjoint.

    The test split is large on purpose: about 800 scans let a claim of one point be decided exactly.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images / 16.0).astype(np.float32)[:, None]
    labels = tuple(f"scan {i}" for i in range(len(images)))
    whole = ingot.Split({"image": images}, found.target.astype(np.int64), labels=labels)
    fractions = {"training": 0.45, "calibration": 0.10, "test": 0.45}
    splits = ingot.split_data(whole, fractions, seed=seed)
    return ingot.make_data(splits, task="classification", classes=DIGITS, name="digits")
