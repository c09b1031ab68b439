"""Where the large matrices of a fit are: NumPy's on the CPU, torch's on a GPU, by the same source.

What grows with the square of the annotations, or with annotations times nodes of a mesh, is made
and kept where the prior computes: kernels, their factors, and what is solved with them. Points,
sections and normal equations stay NumPy's: they are thousands of operations on few numbers, each of
which takes a GPU about as long to begin as a CPU to do (``Testing/benchmarks/array_operations.py``
counts them). So vectors go to the matrices and come back, and matrices stay.

Of NumPy and torch only those functions are called by the code of both that mean the same in both.
Precision: float64 what is solved for, float32 kernels and what is told of variances; torch computes
products of float32 in full unless it is told otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Matrix = Any  # of NumPy, or of torch on a device
HOST = "cpu"  # whose arrays are NumPy's; torch's own name for it would be "cpu:0"


def sent(device: str, array: NDArray[Any]) -> Matrix:
    """A NumPy array where a device computes."""
    if device == HOST:
        return array
    import torch

    return torch.as_tensor(array, device=device)


def beside(matrix: Matrix, array: Matrix) -> Matrix:
    """An array where a matrix is."""
    if isinstance(matrix, np.ndarray):
        return array
    return library(matrix).as_tensor(array, device=matrix.device)


def fetched(array: Matrix) -> NDArray[Any]:
    """As NumPy's."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def library(array: Matrix) -> Any:
    """The module whose functions compute with it."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def single(array: Matrix) -> Matrix:
    """In float32."""
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()


def double(array: Matrix) -> Matrix:
    """In float64."""
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def factor_of(covariance: Matrix, variance: Matrix, keep: bool = False) -> Matrix:
    """(N, N) lower Cholesky factor of a covariance to whose diagonal variances (N,) are added, in
    its precision; in its place, unless it is to be kept.

    Raises:
        numpy.linalg.LinAlgError: it is none.
    """
    if isinstance(covariance, np.ndarray):
        whole = covariance.copy() if keep else covariance
        whole[np.diag_indices(len(whole))] += variance
        return linalg.cholesky(whole, lower=True, overwrite_a=True, check_finite=False)
    torch = library(covariance)
    whole = covariance.clone() if keep else covariance
    whole.diagonal().add_(beside(whole, variance))
    try:
        return torch.linalg.cholesky(whole)
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(str(error)) from error


def solved(factor: Matrix, right: Matrix) -> Matrix:
    """(N, ...) what a matrix of this lower Cholesky factor (N, N) takes to ``right``, in its
    precision."""
    if isinstance(factor, np.ndarray):
        return linalg.cho_solve((factor, True), right.astype(factor.dtype, copy=False))
    columns = beside(factor, right).to(factor.dtype).reshape(len(factor), -1)
    return library(factor).cholesky_solve(columns, factor).reshape(right.shape)


def solved_apart(factor: Matrix, right: Matrix) -> Matrix:
    """(N, ...) L^-1 R of a lower Cholesky factor (N, N): single precision is enough for a variance,
    and twice as fast."""
    if isinstance(factor, np.ndarray):
        return linalg.solve_triangular(
            factor.astype(np.float32, copy=False),
            np.asfortranarray(right, dtype=np.float32),
            lower=True,
            overwrite_b=True,
            check_finite=False,
        )
    columns = beside(factor, single(right)).reshape(len(factor), -1)
    found = library(factor).linalg.solve_triangular(single(factor), columns, upper=False)
    return found.reshape(right.shape)
