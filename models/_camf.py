"""The steps of Adagrad by which ratings are factorized, compiled: a small model is fitted before a graph is built."""

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True)
def _apply(row: int, step: int, rate: float, table: Any, gradient: Any, squares: Any, stamp: Any) -> None:
    """The step of one row `[D]`, unless it has had it; its gradient is 0 again."""
    if stamp[row] == step:
        return
    stamp[row] = step
    for d in range(table.shape[1]):
        g = gradient[row, d]
        squares[row, d] += g * g
        table[row, d] -= rate * g / np.sqrt(squares[row, d] + 1e-7)
        gradient[row, d] = 0.0


@numba.njit(cache=True)
def adagrad_steps(order: Any, rating: Any, rate: float, rows: Any, numbers: Any, tables: Any, penalties: Any) -> None:
    """Goes through the batches of `order` `[S, B]` and changes the weights in place, all float64.

    Args:
      order: row numbers of each step, -1 for none.
      rating: `[N]`, less μ.
      rate: the learning rate.
      rows: of each rating, `cells` `[N, M]`, the rows of the weights that it adds up, -1 for none; `user` and `item`
        `[N]`; `conditions` `[N, C]`, rows of the table of conditions, 0 where not known.
      numbers: the weights `[F, 1]` and their penalties λ n^(ν−1), `[F]`.
      tables: users `[U, D]`, items `[I, D]`; of a low rank conditions `[N + 1, R]`, items `[I, R]` and users `[U, R]`,
        R = 0 for none.
      penalties: of the rows of each of `tables`.
    """
    cells, user, item, conditions = rows
    flat, flat_penalty = numbers
    p, q, w, s, t = tables
    p_pen, q_pen, w_pen, s_pen, t_pen = penalties
    dim, rank = p.shape[1], w.shape[1]
    flat_g, p_g, q_g = np.zeros_like(flat), np.zeros_like(p), np.zeros_like(q)
    w_g, s_g, t_g = np.zeros_like(w), np.zeros_like(s), np.zeros_like(t)
    flat_2, p_2, q_2 = np.full_like(flat, 0.1), np.full_like(p, 0.1), np.full_like(q, 0.1)
    w_2, s_2, t_2 = np.full_like(w, 0.1), np.full_like(s, 0.1), np.full_like(t, 0.1)
    flat_at, p_at, q_at = np.full(len(flat), -1), np.full(len(p), -1), np.full(len(q), -1)
    w_at, s_at, t_at = np.full(len(w), -1), np.full(len(s), -1), np.full(len(t), -1)
    total = np.zeros(rank)
    for step in range(order.shape[0]):
        for row in order[step]:
            if row < 0:
                continue
            u, i = user[row], item[row]
            error = -rating[row]
            for cell in cells[row]:
                if cell >= 0:
                    error += flat[cell, 0]
            for d in range(dim):
                error += p[u, d] * q[i, d]
            for d in range(rank):
                total[d] = 0.0
                for c in conditions[row]:
                    if c > 0:
                        total[d] += w[c, d]
                error += total[d] * (s[i, d] + t[u, d])
            for cell in cells[row]:
                if cell >= 0:
                    flat_g[cell, 0] += 2 * (error + flat_penalty[cell] * flat[cell, 0])
            for d in range(dim):
                p_g[u, d] += 2 * (error * q[i, d] + p_pen[u] * p[u, d])
                q_g[i, d] += 2 * (error * p[u, d] + q_pen[i] * q[i, d])
            for d in range(rank):
                for c in conditions[row]:
                    if c > 0:
                        w_g[c, d] += 2 * (error * (s[i, d] + t[u, d]) + w_pen[c] * w[c, d])
                s_g[i, d] += 2 * (error * total[d] + s_pen[i] * s[i, d])
                t_g[u, d] += 2 * (error * total[d] + t_pen[u] * t[u, d])
        for row in order[step]:
            if row < 0:
                continue
            for cell in cells[row]:
                if cell >= 0:
                    _apply(cell, step, rate, flat, flat_g, flat_2, flat_at)
            _apply(user[row], step, rate, p, p_g, p_2, p_at)
            _apply(item[row], step, rate, q, q_g, q_2, q_at)
            if rank:
                for c in conditions[row]:
                    if c > 0:
                        _apply(c, step, rate, w, w_g, w_2, w_at)
                _apply(item[row], step, rate, s, s_g, s_2, s_at)
                _apply(user[row], step, rate, t, t_g, t_2, t_at)
