"""Least squares at the rank that a design has: indicators of all levels, nothing left out by hand.
N rows, P columns, R the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Space:
    """What the columns of a design span: design = basis @ diag(singular) @ right."""

    basis: np.ndarray  # (N, R), orthonormal columns
    singular: np.ndarray  # (R,)
    right: np.ndarray  # (R, P)

    @classmethod
    def of(cls, rows: int, columns: Sequence[np.ndarray]) -> Space:
        """The span of a column of 1 and the given ones, each (N, P_i)."""
        design = np.hstack([np.ones((rows, 1)), *columns])
        basis, singular, right = np.linalg.svd(design, full_matrices=False)
        rank = int((singular > singular[0] * max(design.shape) * np.finfo(float).eps).sum())
        return cls(basis[:, :rank], singular[:rank], right[:rank])

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def fitted(self, values: np.ndarray) -> np.ndarray:
        """(N,): the nearest of the span to the values."""
        return self.basis @ (self.basis.T @ values)

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """(N,): what the span leaves of the values."""
        return values - self.fitted(values)

    def contrasts(self, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K,), (K,): the sums weights @ coefficients, and what the variance of an error is to be
        multiplied with for their variances: w (X'X)^+ w'. `weights` is (K, P), the column of 1
        first; what the design does not determine is NaN.
        """
        inside = weights @ self.right.T  # (K, R)
        scaled = inside / self.singular
        estimates = scaled @ (self.basis.T @ values)
        outside = np.abs(weights - inside @ self.right).max(axis=1) > 1e-8
        estimates[outside] = np.nan
        return estimates, np.sum(scaled**2, axis=1)
