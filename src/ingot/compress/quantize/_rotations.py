"""Orthogonal matrices that spread one outlier over many channels."""

import numpy as np

from ingot.data.data import Array


def hadamard_rotation(size: int, rng: np.random.Generator) -> Array:
    """Return `R = (H kron O) diag(s) / sqrt(2^k)`, an orthogonal matrix with entries of like size.

    `2^k` is the largest power of two that divides `size`, H its Sylvester-Hadamard matrix, O a
    random orthogonal matrix for the odd rest and s random signs.

    Args:
        size: Rows and columns.
        rng: Where signs and O come from.

    Returns:
        `(size, size)` float64 with `R R^T = 1`.

    References:
        Ashkboos et al., QuaRot, 2024. arXiv:2404.00456
        Tseng et al., QuIP#, 2024. arXiv:2402.04396
    """
    power = size & -size
    matrix = np.kron(_sylvester(power), random_orthogonal(size // power, rng))
    signs = rng.choice([-1.0, 1.0], size)
    rotation: Array = matrix * signs / np.sqrt(power)
    return rotation


def mean_keeping_rotation(size: int, rng: np.random.Generator) -> Array:
    """Return an orthogonal `Q` with `Q 1 = 1`: layer norm without gain and shift commutes with it.

    The mean of `x Q` is that of x, and so is the length of what is left: LN(x Q) = LN(x) Q, to the
    epsilon. `Q = P (H kron O)`: H is a regular Hadamard matrix of order `4^k`, whose rows all sum
    to 1; O is a random orthogonal matrix with the same property; P permutes channels.

    Args:
        size: Rows and columns, the width of the stream.
        rng: Where O and P come from.

    Returns:
        `(size, size)` float64.
    """
    power = 1
    while size % (4 * power) == 0 and size // (4 * power) != 2:  # of size 2 only swaps keep 1
        power *= 4
    matrix = np.kron(_regular_hadamard(power), _fixing_ones(size // power, rng))
    rotation: Array = matrix[rng.permutation(size)]
    return rotation


def random_orthogonal(size: int, rng: np.random.Generator) -> Array:
    """Return an orthogonal matrix drawn uniformly: Q of a Gaussian matrix, R's diagonal positive.

    References:
        Mezzadri, How to Generate Random Matrices from the Classical Compact Groups, 2007.
        arXiv:math-ph/0609050
    """
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    found: Array = q * np.sign(np.diag(r))
    return found


def _sylvester(order: int) -> Array:
    matrix: Array = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _regular_hadamard(order: int) -> Array:
    """Return the orthogonal matrix of order `4^k` with entries +-2^-k whose rows all sum to 1."""
    four = np.ones((4, 4)) / 2 - np.eye(4)[::-1]
    matrix: Array = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.kron(matrix, four)
    return matrix


def _fixing_ones(size: int, rng: np.random.Generator) -> Array:
    """Return `1 1^T / n + V R V^T`: R random orthogonal, V a basis of all vectors that sum to 0."""
    ones = np.ones((size, 1)) / np.sqrt(size)
    if size == 1:
        return np.ones((1, 1))
    axis = np.zeros((size, 1))
    axis[0] = 1
    normal = axis - ones
    reflection = np.eye(size) - 2 * normal @ normal.T / (normal.T @ normal)
    basis = reflection[:, 1:]
    found: Array = ones @ ones.T + basis @ random_orthogonal(size - 1, rng) @ basis.T
    return found
