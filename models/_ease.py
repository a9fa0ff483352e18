"""The linear algebra of `EASE`: an I × I inverse, by items or by users, whichever is less work."""

import numba
import numpy as np

from shortlist.models._cells import Cells

LEAF = 256


@numba.njit(cache=True)
def gram(
    item_starts: np.ndarray, item_users: np.ndarray, user_starts: np.ndarray, user_items: np.ndarray
) -> np.ndarray:
    """XᵀX of a matrix of ones `[U, I]`: how many users each two items share, float64 `[I, I]`.

    Args:
      item_starts: int64 `[I + 1]`, see `item_users`.
      item_users: int32 `[N]`; the users of item i are `item_users[item_starts[i]:item_starts[i + 1]]`.
      user_starts: int64 `[U + 1]`, see `user_items`.
      user_items: int32 `[N]`, the items of every user in the same way.
    """
    items = len(item_starts) - 1
    shared = np.zeros((items, items))
    for i in range(items):
        for user in item_users[item_starts[i] : item_starts[i + 1]]:
            for j in user_items[user_starts[user] : user_starts[user + 1]]:
                shared[i, j] += 1.0
    return shared


def invert(a: np.ndarray) -> None:
    """Inverts a symmetric positive definite matrix in its own place: halves, by the Schur complement.

    4/3 n³ operations, all but the leaves' in matrix products; NumPy's `inv` needs 8/3 n³ and twice the memory.
    """
    if len(a) <= LEAF:
        a[:] = np.linalg.inv(a)
        return
    half = len(a) // 2
    corner, side, rest = a[:half, :half], a[:half, half:], a[half:, half:]
    invert(corner)
    solved = corner @ side
    rest -= side.T @ solved
    invert(rest)
    side[:] = -solved @ rest
    a[half:, :half] = side.T
    corner -= side @ solved.T


def weights(by_user: Cells, l2: float) -> np.ndarray:
    """B of Steck's equation 8, exact, float64 `[I, I]`, from a matrix of ones `[U, I]`.

    With P = (XᵀX + l2·1)⁻¹: B_ij = −P_ij / P_jj, B_jj = 0. Where users are fewer than half the items, P comes from the
    matrix of users by the Woodbury identity, P = (1 − S) / l2 with S = Xᵀ(XXᵀ + l2·1)⁻¹X, so B_ij = S_ij / (1 − S_jj).
    """
    people, row = np.unique(by_user.rows, return_inverse=True)
    if 2 * len(people) <= by_user.shape[1]:
        x = np.zeros((len(people), by_user.shape[1]))  # [U, I], without the empty rows
        x[row, by_user.columns] = 1
        both = x @ x.T
        both[np.diag_indices_from(both)] += l2
        half = np.linalg.solve(np.linalg.cholesky(both), x)  # [U, I]
        b = half.T @ half  # S
        b /= 1 - np.diagonal(b)
    else:
        by_item = by_user.transposed()
        b = gram(by_item.starts, by_item.columns, by_user.starts, by_user.columns)
        b[np.diag_indices_from(b)] += l2
        invert(b)  # P
        b /= -np.diagonal(b)
    np.fill_diagonal(b, 0)
    return b
