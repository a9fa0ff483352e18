"""Slow, obvious NumPy twins of the fast code. Nothing here imports shortlist or TensorFlow.

Past 400 lines because every fast path has its twin here, in one place that imports NumPy alone.
"""

import numpy as np

# --- splits ---------------------------------------------------------------------------------------------------------

_WORD = 2**64 - 1


def mix64(x: int) -> int:
    """One step of splitmix64 in Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def id_hash(text: str) -> int:
    return sum(mix64(256 * place + byte) for place, byte in enumerate(text.encode())) & _WORD


def split_rows(rows, strategy, test=0.1, validation=0.1, rank_train=0.2, folds=5, fold=0, seed=0):
    """Rows are dicts of user, item, timestamp, event, rating (one digit); returns lists of rows by split."""

    def owner(user):
        return mix64(id_hash(user) ^ mix64(seed))

    def pair(row):
        return mix64((owner(row["user"]) + id_hash(row["item"])) & _WORD)

    def sizes(n):
        left, out = max(n - 1, 0), []
        for share in (test, validation, rank_train):
            out.append(min(int(share * n + 0.5), left))
            left -= out[-1]
        return out

    def from_the_end(things, counts):
        """Names for things in order, the last ones test, then validation, then rank_train."""
        names = ["test"] * counts[0] + ["validation"] * counts[1] + ["rank_train"] * counts[2]
        return (names + ["train"] * (len(things) - len(names)))[::-1]

    rows = sorted(
        rows, key=lambda r: (r["user"].encode(), r["timestamp"], pair(r), r["event"], r["item"], str(r["rating"]))
    )
    by_user = {}
    for row in rows:
        by_user.setdefault(row["user"], []).append(row)
    names = []
    if strategy == "per_user_time":
        for own in by_user.values():
            names += from_the_end(own, sizes(len(own)) if len(own) >= 3 else [0, 0, 0])
    elif strategy == "leave_last_out":
        for own in by_user.values():
            names += from_the_end(own, [1, 1, 1] if len(own) >= 4 else [0, 0, 0])
    elif strategy == "global_time":
        line = sorted(row["timestamp"] for row in rows)
        a, b, c = sizes(len(rows))
        for row in rows:
            name = "train"
            for later, taken in (("rank_train", a + b + c), ("validation", a + b), ("test", a)):
                if taken and row["timestamp"] >= line[len(line) - taken]:
                    name = later
            names.append(name)
    elif strategy == "strong":
        able = sorted((user for user, own in by_user.items() if len(own) >= 2), key=owner)
        role = dict(zip(able, from_the_end(able, sizes(len(able)))[::-1], strict=True))
        for user, own in by_user.items():
            name = role.get(user, "train")
            target = max(1, (2 * len(own) + 5) // 10)
            names += [name if name == "train" or i >= len(own) - target else "fold_in" for i in range(len(own))]
    else:
        for row in rows:
            turn = (mix64(pair(row) ^ mix64(row["timestamp"] & _WORD)) % folds - fold) % folds
            names.append({0: "test", 1: "validation"}.get(turn, "train"))
    order = ("train", "fold_in", "rank_train", "validation", "test")
    return {name: [row for row, own in zip(rows, names, strict=True) if own == name] for name in order}


# --- ranking metrics ------------------------------------------------------------------------------------------------


def ranking_metrics(ranked, targets, k):
    """One user's metrics: `ranked` item rows, best first; `targets` item rows, 1 = out of vocabulary."""
    known = {item for item in targets if item >= 2}
    relevant = len(known) + sum(item < 2 for item in targets)
    if relevant == 0:
        return dict.fromkeys(("ndcg", "hr", "recall", "precision", "mrr", "map"), np.nan)
    ranks = [rank for rank, item in enumerate(ranked[:k], 1) if item in known]
    best = min(k, relevant)
    return {
        "ndcg": sum(1 / np.log2(r + 1) for r in ranks) / sum(1 / np.log2(r + 1) for r in range(1, best + 1)),
        "hr": float(bool(ranks)),
        "recall": len(ranks) / best,
        "precision": len(ranks) / k,
        "mrr": 1 / ranks[0] if ranks else 0.0,
        "map": sum((i + 1) / r for i, r in enumerate(ranks)) / best,
    }


def every_resample_mean(values):
    """The means of all n^n resamples of n values, each as likely as the others."""
    n = len(values)
    draws = np.indices((n,) * n).reshape(n, -1).T
    return np.array([np.mean([values[i] for i in draw]) for draw in draws])


def top_k(scores: np.ndarray, k: int, exclude: list[list[int]], first_id: int) -> tuple[np.ndarray, np.ndarray]:
    """What `masked_top_k` returns, by sorting the allowed items of each row."""
    items = np.full((len(scores), k), 0 if first_id else -1)
    values = np.full((len(scores), k), -np.inf)
    for row, line in enumerate(scores):
        allowed = [i for i in range(first_id, len(line)) if i not in exclude[row] and line[i] > -np.inf]
        for place, i in enumerate(sorted(allowed, key=lambda i: (-line[i], i))[:k]):
            items[row, place], values[row, place] = i, line[i]
    return items, values


def popularity_counts(
    items: np.ndarray, times: np.ndarray, num_items: int, now: int, window: int, period: int
) -> np.ndarray:
    """Events of each item within `window` seconds before `now`, both ends rounded down to a whole period."""
    last_end = (max(times) // period + 1) * period
    end = min(now, last_end)
    first_second, past_last_second = (end - window) // period * period, end // period * period
    counts = np.zeros(num_items)
    for item, time in zip(items, times, strict=True):
        counts[item] += first_second <= time < past_last_second
    return counts


def item_knn_scores(seen: np.ndarray, history: list[int], neighbours: int, shrink: float) -> np.ndarray:
    """Sums of shrunk cosines to the items of a history, near neighbours only; `seen` bool `[U, I]`."""
    scores = np.zeros(seen.shape[1])
    for i in history:
        similarity = {}
        for j in range(seen.shape[1]):
            both = int((seen[:, i] & seen[:, j]).sum())
            if j != i and both:
                similarity[j] = both / (np.sqrt(seen[:, i].sum() * seen[:, j].sum()) + shrink)
        for j in sorted(similarity, key=lambda j: (-similarity[j], j))[:neighbours]:
            scores[j] += similarity[j]
    return scores


def wals_half_step(
    target: np.ndarray, weight: np.ndarray, observed: np.ndarray, other: np.ndarray, w0: float, l2: float, nu: float
) -> np.ndarray:
    """The exact factors of every row over all its cells: `target`, `weight`, `observed` `[R, M]`, `other` `[M, D]`."""
    other = other.astype(np.float64)
    factors = np.zeros((len(target), other.shape[1]))
    for row in range(len(target)):
        confidence = np.where(observed[row], weight[row], w0).astype(np.float64)
        wanted = np.where(observed[row], target[row], 0.0)
        n = observed[row].sum() + w0 * len(other)
        system = other.T @ np.diag(confidence) @ other + l2 * n**nu * np.eye(other.shape[1])
        factors[row] = np.linalg.lstsq(system, other.T @ (confidence * wanted), rcond=None)[0]
    return factors


def wals_loss(
    target: np.ndarray,
    weight: np.ndarray,
    observed: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    w0: float,
    l2: float,
    nu: float,
) -> float:
    """The objective of WALS, cell by cell over the whole matrix."""
    error = np.where(observed, target, 0.0) - users.astype(np.float64) @ items.astype(np.float64).T
    total = (np.where(observed, weight, w0) * error**2).sum()
    for factors, counts, size in ((users, observed.sum(1), len(items)), (items, observed.sum(0), len(users))):
        n = counts + w0 * size
        total += l2 * (n**nu * (factors.astype(np.float64) ** 2).sum(axis=1)).sum()
    return float(total)


def first_rows(keys: list[tuple]) -> list[int]:
    """The indices of the rows whose key has not come before."""
    seen: set[tuple] = set()
    return [row for row, key in enumerate(keys) if not (key in seen or seen.add(key))]


def shared_timestamps(users: np.ndarray, timestamps: np.ndarray) -> float:
    """The share of rows that have their user and timestamp in common with another row."""
    same = (users[:, None] == users[None]) & (timestamps[:, None] == timestamps[None])
    return float((same.sum(1) > 1).mean())


# --- layers, features, the first stage ------------------------------------------------------------------------------


def quantile_share(bounds, value):
    """Where `value` stands among ascending quantiles, in [0, 1]; where it equals some, the middle of those."""
    last = len(bounds) - 1
    equal = [place for place, bound in enumerate(bounds) if bound == value]
    if equal:
        return (equal[0] + equal[-1]) / 2 / last
    below = sum(bound < value for bound in bounds)
    if below in (0, last + 1):
        return float(below > 0)
    return (below - 1 + (value - bounds[below - 1]) / (bounds[below] - bounds[below - 1])) / last


def two_tower_queries(w, query, length, temperature=1.0, normalize=False, half_life=0.0, long=0):
    """One query vector a row; `w` maps a weight's name to its array, `w["tower"]` is a list of (kernel, bias),
    `w["categories"]` a table by name, `w["numbers"]` the quantiles by name."""

    def mean(table, rows, weights):
        known = [(table[i], weight) for i, weight in zip(rows, weights, strict=True) if i >= 2]
        total = sum(weight for _, weight in known)
        return sum(weight * row for row, weight in known) / total if known else np.zeros(table.shape[1])

    def of_numbers(table, shares):
        return sum(np.array([x, x * x, np.sqrt(x)]) @ table[f :: len(shares)] for f, x in enumerate(shares))

    vectors = []
    for row, history in enumerate(query["history"]):
        watched = [(i, t) for i, t in zip(history, query["history_time"][row], strict=True) if i != 0]
        parts = []
        newest = max((t for i, t in watched[-max(long, length) :] if i >= 2), default=0)
        for part in [watched[-long:], watched[-length:]] if long else [watched[-length:]]:
            decay = [0.5 ** ((newest - t) / half_life) if half_life else 1.0 for _, t in part]
            parts.append(mean(w["history_table"], [i for i, _ in part], decay))
        if "time_table" in w:
            parts.append(of_numbers(w["time_table"], [quantile_share(w["time_quantiles"], float(query["time"][row]))]))
        if "user_table" in w:
            parts.append(w["user_table"][query["user"][row]])
        for name, table in w.get("categories", {}).items():
            parts.append(mean(table, [query[name][row]], [1.0]))
        if "number_table" in w:
            asked = [(bounds, query[name][row]) for name, bounds in w["numbers"].items()]
            shares = [0.0 if np.isnan(value) else quantile_share(bounds, value) for bounds, value in asked]
            parts.append(of_numbers(w["number_table"], shares))
        if "token_table" in w:
            parts.append(mean(w["token_table"], query["query"][row], np.ones(len(query["query"][row]))))
        if "age_table" in w:
            age = query["example_age"][row] if "example_age" in query else 0.0
            parts.append(of_numbers(w["age_table"], [quantile_share(w["age_quantiles"], float(age))]))
        psi = np.concatenate(parts) if w.get("tower") else sum(parts)
        for place, (kernel, bias) in enumerate(w.get("tower", []), 1):
            psi = psi @ kernel + bias
            psi = psi if place == len(w["tower"]) else np.maximum(psi, 0)
        vectors.append(psi / np.linalg.norm(psi) / temperature if normalize else psi / temperature)
    return np.array(vectors)


def two_tower_items(w, normalize=False):
    """One vector an item; `w["columns"]` holds (rows, table) of each further column."""
    vectors = []
    for item, vector in enumerate(w["candidate_table"].astype(np.float64)):
        vector = vector * w["trained"][item] if "trained" in w else vector
        if "genre_table" in w:
            vector = vector + sum(w["genre_table"][g] * has for g, has in enumerate(w["genres"][item]))
        if "year_table" in w:
            vector = vector + w["year_table"][w["years"][item]]
        if "title_table" in w:
            words = [w["title_table"][word] for word in w["titles"][item] if word >= 2]
            vector = vector + (sum(words) / len(words) if words else 0)
        for rows, table in w.get("columns", ()):
            vector = vector + (table[rows[item]] if rows[item] >= 2 else 0)
        vectors.append(vector / np.linalg.norm(vector) if normalize else vector)
    return np.array(vectors)


def softmax_loss(logits, right):
    """The summed cross-entropy of rows of logits (−∞ is left out); `right` is the column of each row's label."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), right, strict=True):
        total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
    return total


def sampled_logits(kind, psi, vectors, labels, log_q, sampled=(), hard=None):
    """By example: corrected logits, −∞ where a negative is the label; the items that they are of; the label's place."""
    logits, items, own = [], [], []
    for b, label in enumerate(labels):
        if kind == "positives_only":
            logits.append([psi[b] @ vectors[label], 0.0])  # −log σ(s) = −log(e^s / (e^s + e^0))
            items.append([label, None])
            own.append(0)
            continue
        if kind == "full":
            columns, place = list(range(2, len(vectors))), label - 2
        elif kind in ("in_batch", "mixed", "hard"):
            columns, place = [*labels, *sampled], b
        else:
            columns, place = [label, *sampled], 0
        columns += list(hard[b]) if hard is not None else []
        row = [psi[b] @ vectors[i] - log_q[i] for i in columns]
        logits.append([-np.inf if i == label and c != place else row[c] for c, i in enumerate(columns)])
        items.append(columns)
        own.append(place)
    return logits, items, own


def log_q(kind, counts, batch, negatives, power):
    """log Q of each item, up to a constant."""
    share = np.maximum(counts, 0.5) / np.sum(counts)
    if kind == "in_batch":
        return np.log(share)
    if kind in ("mixed", "hard"):
        return np.log((batch * share + negatives / (len(counts) - 2)) / (batch + negatives))
    return np.log(share**power) if kind == "popularity" else np.zeros(len(counts))


def softmax_step(psi, vectors, logits, items, own, weight):
    """The weighted loss and its gradients by the query vectors `[B, D]` and the item vectors `[I, D]`."""
    loss, by_psi, by_vector = 0.0, np.zeros(psi.shape), np.zeros(vectors.shape)
    for b, (row, columns, place) in enumerate(zip(logits, items, own, strict=True)):
        share = np.exp(np.array(row) - max(row))
        share /= share.sum()
        loss -= weight[b] * np.log(share[place])
        for c, item in enumerate(columns):
            error = weight[b] * (share[c] - (c == place))
            if item is not None:
                by_psi[b] += error * vectors[item]
                by_vector[item] += error * psi[b]
    return loss, by_psi, by_vector


def streaming_gaps(batches, places, rate, first):
    """The mean gap of every bucket that was seen: {place: gap}; `places` maps an item to its bucket in each array."""
    last, gap = {}, {}
    for step, batch in enumerate(batches, 1):
        for place in {place for item in batch for place in places[item]}:
            gap[place] = (1 - rate) * gap.get(place, first) + rate * (step - last.get(place, 0))
            last[place] = step
    return gap


def weighted_logits(
    features, fitted, kernels, num_quantiles, cross=(), table=None, item=None, history=None, use_powers=True, ignored=()
):
    """Logits of `features` [N, F]; `fitted` is what the normalization has seen, `kernels` a list of (kernel, bias).

    `cross` are the (kernel, bias) of layers x0 (W x + b) + x; with a `table` [I, D], `item` [N] and `history` [N, L].
    """
    fitted = np.asarray(fitted, np.float64)
    logits = []
    for n, row in enumerate(features):
        low = np.quantile(fitted, np.linspace(0, 1, num_quantiles), axis=0)
        used = [f for f in range(len(row)) if f not in ignored]
        share = np.array([quantile_share(low[:, f], row[f]) for f in used])
        standard = [np.clip((row[f] - fitted[:, f].mean()) / max(fitted[:, f].std(), 1e-6), -5, 5) for f in used]
        x = [*share, *(share**2 if use_powers else ()), *(np.sqrt(share) if use_powers else ()), *standard]
        if table is not None:
            x += list(table[item[n]] * (item[n] >= 2))
            past = [table[i] * (i >= 2) for i in history[n]]
            for vector in past:
                x += list(vector)
            x += list(sum(past) / max(sum(i >= 2 for i in history[n]), 1))
        x = first = np.array(x)
        for kernel, bias in cross:
            x = first * (x @ kernel + bias) + x
        for place, (kernel, bias) in enumerate(kernels, 1):
            x = x @ kernel + bias
            x = x if place == len(kernels) else np.maximum(x, 0)
        logits.append(x[0])
    return np.array(logits)


def weighted_loss(z, label, weight, exact=False):
    """Mean of −T log σ for a positive, −log(1 − σ) for a negative, and with `exact` for a positive as well."""
    losses = []
    for own, y, w in zip(z, label, weight, strict=True):
        share = 1 / (1 + np.exp(-own))
        losses.append(-w * np.log(share if y else 1 - share) - (np.log(1 - share) if y and exact else 0))
    return np.mean(losses)


def balancing_constant(z, in_favour, against):
    """The b with Σ in_favour (1 − σ(z + b)) = Σ against σ(z + b), by halving."""
    low, high = -200.0, 200.0
    for _ in range(200):
        b = (low + high) / 2
        share = 1 / (1 + np.exp(-(z + b)))
        low, high = (b, high) if (in_favour * (1 - share)).sum() > (against * share).sum() else (low, b)
    return b


def adagrad_rows(table, squares, indices, values, rate, epsilon):
    """One step on the rows that `indices` names, in place; what a row is told twice counts in sum."""
    for row in sorted(set(indices)):
        gradient = sum(value for index, value in zip(indices, values, strict=True) if index == row)
        squares[row] += gradient**2
        table[row] -= rate * gradient / np.sqrt(squares[row] + epsilon)


def cosine(a, b):
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.dot(a, b) / size) if size else 0.0


def log_days(seconds):
    return np.log1p(max(seconds, 0) / 86_400)


def log_odds(rate):
    return np.log(rate / (1 - rate))


def values_of(catalogue, column, i):
    """What an item has of `genres` or a category: a set, empty for an item that is none."""
    if i < 2:
        return set()
    if column == "genres":
        return {g for g, has in enumerate(catalogue["genres"][i]) if has}
    return {catalogue["categories"][column][i]} - {0, 1}


def column_features(catalogue, query, entries, i):
    """The features of item `i` by its columns; `entries` are the last (item, time, weight) watched, the unknown too."""
    found, now = {}, query["time"]
    kind = {"watch_time": "finished", "rating": "rated", "none": None}[catalogue.get("weight_from", "none")]
    lengths = catalogue.get("numbers", {}).get("length")
    if kind == "finished" and lengths is None:
        kind = None
    shares = {}
    for place, (h, _, weight) in enumerate(entries):
        full = None if kind is None or h < 2 else lengths[h] if kind == "finished" else catalogue["highest"]
        if full is not None and full > 0 and weight >= 0:
            shares[place] = min(weight / full, 1)
    mean = (0.5 + sum(shares.values())) / (1 + len(shares))
    shown = catalogue.get("shown") is not None
    passed = [(p, t) for p, t in zip(query["impressions"], query["impressions_time"], strict=True) if p >= 2]
    watched = [h for h in query["history"] if h >= 2]
    if shown:
        rate = np.sum(catalogue["count"]) / np.sum(catalogue["shown"])
        rate = (len(watched) + 10 * rate) / (len(watched) + len(passed) + 10)
    for column in ("genres", *catalogue.get("categories", {})):
        own = values_of(catalogue, column, i)
        same = [place for place, (h, _, _) in enumerate(entries) if own & values_of(catalogue, column, h)]
        found[f"watched:{column}"] = np.log1p(len(same))
        found[f"since:{column}"] = log_days(min([now - entries[place][1] for place in same], default=1e9))
        if kind:
            told = [shares[place] for place in same if place in shares]
            found[f"{kind}:{column}"] = (mean + sum(told)) / (1 + len(told)) - mean
        if shown:  # an item with two of the genres is two watches or impressions, one of each genre
            good = sum(len(own & values_of(catalogue, column, h)) for h in watched)
            bad = sum(len(own & values_of(catalogue, column, p)) for p, _ in passed)
            found[f"click_rate:{column}"] = log_odds((good + 10 * rate) / (good + bad + 10))
    for column in catalogue.get("shared", ()):
        item, user = catalogue["categories"][column][i], query[f"user_{column}"]
        found[f"match:{column}"] = 0.5 if item < 2 or user == 0 else float(item == user)
    if kind:
        found[f"mean_{kind}"] = mean
    if shown:
        times = [t for p, t in passed if p == i]
        found["user_click_rate"] = log_odds(rate)
        found["ignored"] = np.log1p(len(times))
        found["since_ignored"] = log_days(now - max(times) if times else 1e9)
    return found


def context_lift(counts, item, condition):
    """The log of how much more of an item's positives, with 10 of the usual kind, have a condition than of all's."""
    counts = np.array(counts, np.float64)
    counts[:, :2] = 0  # missing and unknown
    if condition < 2 or not counts[:, condition].sum():
        return 0.0
    usual = counts[:, condition].sum() / counts.sum()
    return np.log((counts[item, condition] + 10 * usual) / (counts[item].sum() + 10) / usual)


def ranking_features(catalogue, vectors, sources, length, query, items, scores, ranks, quota=(), best=None):
    """Features by name for one request: `query` a dict without batch, items [C], scores and ranks [S, C].

    `catalogue` has genres, year, count, recent_count, first_time and last_time by item row, and may have weight, shown,
    weight_from, highest, categories, shared, numbers and contexts. `best` are the rows and scores of the shortlist,
    [K] and [S, K].
    """
    query = {
        "history_weight": np.full(len(query["history"]), -1.0),
        **{name: np.zeros(0, np.int64) for name in ("impressions", "impressions_time")},
        "example_age": 0.0,
        **{f"user_{name}": 0 for name in catalogue.get("shared", ())},
        **query,
    }
    shortlist, theirs = (items, scores) if best is None else best
    day = 86_400
    entries = [(i, t) for i, t in zip(query["history"], query["history_time"], strict=True) if i != 0]
    ever = sum(i >= 2 for i, _ in entries)
    entries = entries[-length:]
    known = [i for i, _ in entries if i >= 2]
    ago = [query["time"] - t for i, t in entries if i >= 2]
    last = {n: [i for i, _ in entries[-n:] if i >= 2] for n in (1, 3, 10)}
    unit = [g / max(np.linalg.norm(g), 1e-9) for g in catalogue["genres"]]
    dated = [catalogue["year"][i] for i in last[10] if catalogue["year"][i] > 0]
    there = [k for k, i in enumerate(shortlist) if i >= 2]
    weights = [w for i, w in zip(query["history"], query["history_weight"], strict=True) if i != 0][-length:]
    weighed = [(i, t, w) for (i, t), w in zip(entries, weights, strict=True)]
    newest = max(catalogue["last_time"])
    rows = []
    for c, i in enumerate(items):
        if i < 2:
            rows.append(None)
            continue
        found = {}
        for s, source in enumerate(sources):
            own = theirs[s][there].astype(np.float64)
            alike = len(set(own)) <= 1
            found[f"score_z:{source}"] = 0.0 if alike else np.clip((scores[s][c] - own.mean()) / own.std(), -100, 100)
            found[f"log_rank:{source}"] = np.log1p(ranks[s][c])
            if len(quota):
                found[f"proposed:{source}"] = float(ranks[s][c] <= quota[s])
        found["log_fused_rank"] = np.log1p(list(shortlist).index(i) if i in shortlist else len(shortlist))
        found["log_history"] = np.log1p(ever)
        found["log_gap"] = np.log1p(max(min(ago), 0) if ago else 1e9)
        found["log_last_day"] = np.log1p(sum(a <= day for a in ago))
        found["history_log_count"] = np.mean([np.log1p(catalogue["count"][h]) for h in known]) if known else 0.0
        for name, table in vectors.items():
            near = [cosine(table[i], table[h]) for h in known]
            for n, part in last.items():
                found[f"cosine_last_{n}:{name}"] = np.mean([cosine(table[i], table[h]) for h in part]) if part else 0.0
            found[f"cosine_all:{name}"] = np.mean(near) if near else 0.0
            found[f"cosine_max:{name}"] = max(near) if near else -1.0
        for name, part in (("genres_last_10", last[10]), ("genres_all", known)):
            found[name] = cosine(unit[i], sum(unit[h] for h in part)) if part else 0.0
        year = catalogue["year"][i]
        difference = year - np.mean(dated) if dated and year > 0 else 0.0
        found["year_difference"], found["year_distance"] = difference, abs(difference)
        found["age"] = max(1970 + query["time"] / (365.2425 * day) - year, 0) if year > 0 else -1.0
        found["since_last_event"] = log_days(min(query["time"], newest) - catalogue["last_time"][i])
        found["since_first_event"] = log_days(min(query["time"], newest) - catalogue["first_time"][i])
        found["log_count"] = np.log1p(catalogue["count"][i])
        found["log_recent"] = np.log1p(catalogue["recent_count"][i])
        for name, values in catalogue.get("numbers", {}).items():
            told = [v for v in values if np.isfinite(v)]
            value = values[i] if np.isfinite(values[i]) else np.median(told) if told else 0.0
            found[f"number:{name}"] = np.log1p(value) if value >= 0 else -np.log1p(-value)
        if catalogue.get("shown") is not None:
            rate = np.sum(catalogue["count"]) / np.sum(catalogue["shown"])
            found["click_rate"] = log_odds((catalogue["count"][i] + 10 * rate) / (catalogue["shown"][i] + 10))
        if catalogue.get("weight_from", "none") != "none":
            mean = np.sum(catalogue["weight"]) / np.sum(catalogue["count"])
            found["mean_weight"] = np.log((catalogue["weight"][i] + 5 * mean) / (catalogue["count"][i] + 5))
        found |= column_features(catalogue, query, weighed, i)
        for name, counts in catalogue.get("contexts", {}).items():
            found[name] = context_lift(counts, i, query.get(name, 0))
        found["example_age"] = log_days(query["example_age"])
        rows.append(found)
    names = next(row for row in rows if row)
    return {name: np.array([row[name] if row else 0.0 for row in rows]) for name in names}


def shortlist(scores, quota, size, popularity, history, exclude):
    """One request: `scores` [S, I], `quota` [S]. Items best first with their fused scores, and ranks by source."""
    if not any(i >= 2 for i in history):
        scores = [popularity] * len(scores)
    ranks = []
    for own, limit in zip(scores, quota, strict=True):
        allowed = [i for i in range(2, len(own)) if i not in exclude]
        best = sorted(allowed, key=lambda i: (-own[i], i))[:limit]
        ranks.append({i: rank for rank, i in enumerate(best, 1)})
    fused = {}
    for own in ranks:
        for i, rank in own.items():
            fused[i] = fused.get(i, 0.0) + 1 / (60 + rank)
    order = sorted(fused, key=lambda i: (-round(fused[i], 9), i))[:size]
    return order, [fused[i] for i in order], ranks


def mmr(items, vectors, diversity, steps):
    """Items, best first, by maximal marginal relevance: `steps` of them, then the rest."""
    left, chosen = list(items), []
    relevance = {item: 1 - place / len(items) for place, item in enumerate(items)}
    while left and len(chosen) < steps:
        nearest = {i: max((cosine(vectors[i], vectors[j]) for j in chosen), default=0.0) for i in left}
        best = max(left, key=lambda i: (1 - diversity) * relevance[i] - diversity * nearest[i])
        left.remove(best)
        chosen.append(best)
    return chosen + left


def nearest_watched(items, history, vectors):
    """The last watched item that is most like each, 0 for none."""
    found = []
    for item in items:
        alike = {watched: cosine(vectors[item], vectors[watched]) for watched in history if item}
        best = max(alike, key=alike.get, default=0)
        found.append(best if alike.get(best, 0) > 0 else 0)
    return found


# --- queries and examples -------------------------------------------------------------------------------------------


def queries(parts, split, vocabulary, of_all=False):
    """What each user's query of `split` is. `parts`: rows by split, in order; a row has user, item, timestamp, event,
    positive, weight and known (its own weight, or -1). By user: time, history (item, timestamp, known), impressions
    (item, timestamp), seen, targets (item or "" if unknown, weight), shown (item, positive, weight, timestamp), age."""
    names = list(parts)
    earlier = [row for name in names[: names.index(split)] for row in parts[name]]
    found = {}
    for user in sorted({row["user"] for row in parts[split] if row["positive"] or of_all}):
        target = [row for row in parts[split] if row["user"] == user]
        before = [row for row in earlier if row["user"] == user and row["item"] in vocabulary]
        first = min(row["timestamp"] for row in target)
        past = sorted((row for row in before if row["timestamp"] < first), key=lambda row: row["timestamp"])
        found[user] = {
            "time": first,
            "history": [(row["item"], row["timestamp"], row["known"]) for row in past if row["positive"]],
            "impressions": [(row["item"], row["timestamp"]) for row in past if row["event"] == "impression"],
            "seen": sorted(row["item"] for row in before if row["event"] == "watch"),
            "targets": [
                (row["item"] if row["item"] in vocabulary else "", row["weight"]) for row in target if row["positive"]
            ],
            "shown": [
                (row["item"], row["positive"], row["weight"] if row["positive"] else 0.0, row["timestamp"])
                for row in target
                if row["item"] in vocabulary
            ],
        }
    newest = max((query["time"] for query in found.values()), default=0)
    for query in found.values():
        query["age"] = float(newest - query["time"] if split == "rank_train" else 0)
    return found


def next_item_examples(rows, length):
    """Every (user, history, times, time, label) of rows in time order; rows have user, item, timestamp, positive."""
    found = []
    for row in rows:
        own = [r for r in rows if r["user"] == row["user"] and r["positive"] and r["timestamp"] < row["timestamp"]]
        if row["positive"] and own:
            last = own[-length:]
            times = tuple(r["timestamp"] for r in last)
            found.append((row["user"], tuple(r["item"] for r in last), times, row["timestamp"], row["item"]))
    return found


# --- EASE -----------------------------------------------------------------------------------------------------------


def ease_weights(seen, l2):
    """B of equation 8 by NumPy's general inverse, float64 [I, I], from booleans [U, I]."""
    x = seen.astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    return np.eye(x.shape[1]) - inverse / np.diag(inverse)


def keep_largest(weights, neighbours):
    """Of every row the `neighbours` entries largest in size, ties by the lower column, the others 0."""
    kept = np.zeros_like(weights)
    for row, values in enumerate(weights):
        for column in sorted(range(len(values)), key=lambda j: (-abs(values[j]), j))[:neighbours]:
            kept[row, column] = values[column]
    return kept


# --- the evaluator ---------------------------------------------------------------------------------------------------


def bootstrap_mean(values, samples=2000, seed=0, level=0.95):
    """Mean and percentile interval of one column, by gathering the drawn users."""
    kept = values[~np.isnan(values)].astype(np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(kept), (samples, len(kept)), np.int32)
    low, high = np.quantile(kept[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return kept.mean(), low, high


def sign_flip_p(differences):
    """The share of all exchanges of signs that give a sum at least as far from 0."""
    kept = [d for d in differences if not np.isnan(d)]
    sums = [abs(sum(s * d for s, d in zip(signs, kept, strict=True))) for signs in _signs(len(kept))]
    return np.mean([s >= abs(sum(kept)) - 1e-9 for s in sums])


def _signs(n):
    return [()] if n == 0 else [(s, *rest) for s in (1, -1) for rest in _signs(n - 1)]


def holm(p):
    corrected = []
    for own in p:
        smaller = sorted(q for q in p if q <= own)
        corrected.append(max(min(1, (len(p) - place) * q) for place, q in enumerate(smaller)))
    return corrected


def list_metrics(ranked, k, watchers, users, genres, counts, history):
    """One list by itself: mean surprise in bits, 1 − mean cosine of genres over pairs, popularity against a history."""
    items = [i for i in ranked[:k] if i >= 2]
    surprise = [-np.log2(max(watchers[i], 1) / users) for i in items]
    pairs = [(a, b) for a in items for b in items if a < b and genres[a].any() and genres[b].any()]
    alike = [cosine(genres[a], genres[b]) for a, b in pairs]
    catalogue = list(counts[2:])

    def percentile(i):
        return sum((c < counts[i]) + (c == counts[i]) / 2 for c in catalogue) / len(catalogue)

    def mean(values):
        return sum(values) / len(values) if values else np.nan

    return {
        "novelty": mean(surprise),
        "diversity": 1 - mean(alike),
        "popularity_bias": mean([percentile(i) for i in items]) - mean([percentile(i) for i in history]),
    }


def gini(lists, k, num_items):
    """Half the mean difference of the exposures of any two items, relative to their mean."""
    shown = [item for own in lists for item in own[:k]]
    exposure = np.array([shown.count(item) for item in range(2, num_items + 2)])
    return np.abs(exposure[:, None] - exposure[None]).mean() / 2 / exposure.mean()


def weighted_ndcg(ranked, targets, weights, k):
    """NDCG whose gains are the weights of the targets; those of one item add up, those out of vocabulary never come."""
    gain, unknown = {}, []
    for item, weight in zip(targets, weights, strict=True):
        if item < 2:
            unknown.append(weight)
        else:
            gain[item] = gain.get(item, 0) + weight
    best = sorted([*gain.values(), *unknown], reverse=True)[:k]
    ideal = sum(w / np.log2(place + 1) for place, w in enumerate(best, 1))
    got = sum(gain.get(item, 0) / np.log2(place + 1) for place, item in enumerate(ranked[:k], 1))
    return got / ideal if ideal else np.nan


def lost_pairs(scores, positive, weight, group):
    """Over pairs of a positive and a negative of one group: the weight on the wrong side, ties half, and all weight."""
    lost = total = 0.0
    for s, is_positive, w, g in zip(scores, positive, weight, group, strict=True):
        for other, other_positive, h in zip(scores, positive, group, strict=True):
            if is_positive and not other_positive and g == h:
                total += float(w)
                lost += float(w) * (1.0 if other > s else 0.5 if other == s else 0.0)
    return lost, total


def calibration(expected, actual, buckets):
    """By bucket its rows: the average rank of a prediction says where it lies."""
    found = {}
    for row, x in enumerate(expected):
        rank = sum(y < x for y in expected) + (sum(y == x for y in expected) + 1) / 2
        found.setdefault(int(buckets * (rank - 0.5) / len(expected)), []).append(row)
    return {
        b: (len(rows), np.mean([expected[r] for r in rows]), np.mean([actual[r] for r in rows]))
        for b, rows in sorted(found.items())
    }


# --- models that build on others --------------------------------------------------------------------------------------


def neighbour_scores(vectors, history, length, decay):
    """Σ over the last `length` entries of a history of decay^age · cosine; rows 0 and 1 say nothing."""
    scores = np.zeros(len(vectors))
    for age, watched in enumerate(list(history)[::-1][:length]):
        for item in range(2, len(vectors)):
            lengths = np.linalg.norm(vectors[watched]) * np.linalg.norm(vectors[item])
            if watched >= 2 and lengths > 0:
                scores[item] += decay**age * vectors[watched] @ vectors[item] / lengths
    return scores


def similar_user_scores(query, vectors, own, items, times, now, count, neighbours, half_life_days):
    """What the users nearest to a query vector watched before `now`, by cosine and age; `own` is left out.

    `vectors`, `items` and `times` are by user; a user without a vector is none.
    """

    def cosine(a, b):
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / lengths if lengths else 0.0

    known = [u for u in range(2, len(vectors)) if u != own and np.any(vectors[u])]
    near = sorted(known, key=lambda u: -cosine(query, vectors[u]))[:neighbours]
    scores = np.full(count, -np.inf)
    for user in near:
        for item, time in zip(items[user], times[user], strict=True):
            weight = max(cosine(query, vectors[user]), 0) * 0.5 ** ((now - time) / 86_400 / half_life_days)
            if item >= 2 and time < now and weight > 0:
                scores[item] = max(scores[item], 0) + weight
    return scores


# --- by content and by knowledge --------------------------------------------------------------------------------------


def content_vectors(blocks, weights):
    """TF-IDF by block, each block of an item of length 1 times its weight, and the whole of length 1 again."""
    rows = []
    for i in range(len(next(iter(blocks.values())))):
        row = []
        for name, block in blocks.items():
            described = sum(any(other) for other in block)
            own = [x * np.log((1 + described) / (1 + sum(o[f] for o in block))) for f, x in enumerate(block[i])]
            length = np.sqrt(sum(x * x for x in own))
            row += [weights.get(name, 1.0) * x / length if length else 0.0 for x in own]
        length = np.sqrt(sum(x * x for x in row))
        rows.append([x / length if length else 0.0 for x in row])
    return np.array(rows)


def content_scores(w, query, length, kept=1.0):
    """Scores of the network (where `w` has a tower) or of the profile; `kept` multiplies what is an item's own."""
    content, scores = w["content"], []
    for row, history in enumerate(query["history"]):
        watched = [(i, p) for p, i in enumerate(history) if i != 0][-length:]
        watched = [(i, p) for i, p in watched if i >= 2]
        told = [query["history_weight"][row][p] for _, p in watched] if "history_weight" in query else []
        known = [t for t in told if t >= 0]
        each = [t if t >= 0 else np.mean(known) if known else 1.0 for t in told] or [1.0] * len(watched)

        def mean(table, of=watched, weight=each):
            total = sum((t * table(i) for (i, _), t in zip(of, weight, strict=True)), 0 * table(0))
            return total / sum(weight) if sum(weight) else total

        x = mean(lambda i: content[i])
        if "tower" not in w:
            lengths = np.linalg.norm(x) * np.linalg.norm(content, axis=1)
            scores.append([c @ x / n if n else 0.0 for c, n in zip(content, lengths, strict=True)])
            continue
        z = np.concatenate([mean(lambda i: w["id_table"][w["bucket"][i]]), x]) if "id_table" in w else x
        for kernel, bias in w["tower"]:
            z = np.maximum(z @ kernel + bias, 0)
        vectors = content @ w["content_table"] + kept * w["trained"][:, np.newaxis] * w["own"]
        scores.append(vectors[:, :-1] @ z + vectors[:, -1])
    return np.array(scores)


def broken_constraints(item, columns, wanted, numbers, between, order):
    """Which of `order` an item breaks; `item` has a set of attributes by column, and numbers by name (NaN unknown)."""
    broken = set()
    for column in columns:
        liked = {a for a, sign in wanted[column].items() if sign == 1}
        if liked and not liked & item[column]:
            broken.add(f"like:{column}")
        if {a for a, sign in wanted[column].items() if sign == -1} & item[column]:
            broken.add(f"refuse:{column}")
    for name in numbers:
        low, high = between[name]
        said, value = not (np.isnan(low) and np.isnan(high)), item[name]
        if said and (np.isnan(value) or value < low or value > high):
            broken.add(f"range:{name}")
    return [name in broken for name in order]


def relaxed_order(broken, soft, count, k):
    """The k items in the order of the relaxation: for j = 0, 1, … those that break nothing but the first j constraints
    (of which only `soft` are ever relaxed), within it those that don't break the j-th last relaxed, and so on; then the
    more popular, then the lower row. `broken` is a list of bools an item; the first two items are reserved."""
    able = [i for i in range(2, len(broken)) if not any(broken[i][soft:])]
    return sorted(able, key=lambda i: (broken[i][::-1], -count[i], i))[:k]


def derived_constraints(history, has, number, count, length, likes, refuse_after, middle):
    """`wanted` of one column of attributes and the ends of each number, from one history of item rows."""
    known = [i for i in history if i >= 2]
    recent = [i for i in [i for i in history if i != 0][-length:] if i >= 2]
    wanted = np.zeros(has.shape[1])
    for a in range(has.shape[1]):
        share = sum(count[i] for i in range(2, len(has)) if has[i, a]) / sum(count[2:])
        if not any(has[i, a] for i in known) and len(known) * share >= refuse_after:
            wanted[a] = -1
    watched = [sum(has[i, a] for i in recent) for a in range(has.shape[1])]
    for a in sorted(range(len(watched)), key=lambda a: (-watched[a], a))[:likes]:
        if watched[a]:
            wanted[a] = 1
    ends = []
    for column in number.T:
        values = sorted(column[i] for i in recent if np.isfinite(column[i]))
        places = [round(share * (len(values) - 1)) for share in ((1 - middle) / 2, (1 + middle) / 2)]
        ends.append([values[p] for p in places] if values else [np.nan, np.nan])
    return wanted, np.array(ends)


# --- rating models --------------------------------------------------------------------------------------------------


def camf_rating(w, user, item, conditions):
    """One rating as a sum of named terms; `conditions` are columns, 0 where not known; a table that isn't there is 0.

    w: mean; user_bias, item_bias; user_table, item_table; context [N + 1], item_context [I, N + 1],
    user_context [U, N + 1]; context_table [N + 1, R], user_context_table [U, R], item_context_table [I, R].
    """
    total = w["mean"] + w["user_bias"][user] + w["item_bias"][item]
    total += sum(a * b for a, b in zip(w["user_table"][user], w["item_table"][item], strict=True))
    for c in conditions:
        if c == 0:
            continue
        total += w["context"][c] if "context" in w else 0
        total += w["item_context"][item, c] if "item_context" in w else 0
        total += w["user_context"][user, c] if "user_context" in w else 0
        if "context_table" in w:
            total += (w["user_context_table"][user] + w["item_context_table"][item]) @ w["context_table"][c]
    return total


def camf_loss(w, rows, l2_bias, l2_factors, l2_deviation, exponent, counts=None):
    """rows: (user, item, conditions, rating); counts: by table, how often a row of it is trained on (default: once)."""

    def share(table, row):
        n = 1 if counts is None else max(counts[table].get(row, 0), 1)
        return n ** (exponent - 1)

    loss = 0.0
    for user, item, conditions, rating in rows:
        loss += (rating - camf_rating(w, user, item, conditions)) ** 2
        for side, row in (("user", user), ("item", item)):
            loss += l2_bias * share(side, row) * w[f"{side}_bias"][row] ** 2
            loss += l2_factors * share(side, row) * (w[f"{side}_table"][row] ** 2).sum()
            if "context_table" in w:
                loss += l2_deviation * share(side, row) * (w[f"{side}_context_table"][row] ** 2).sum()
        for c in conditions:
            if c == 0:
                continue
            for table, cell in (("context", c), ("item_context", (item, c)), ("user_context", (user, c))):
                if table in w:
                    loss += l2_deviation * share(table, cell) * w[table][cell] ** 2
            if "context_table" in w:
                loss += l2_deviation * share("context", c) * (w["context_table"][c] ** 2).sum()
    return loss


def hybrid_scores(scores, by_query, by_item, bias, phi, theta):
    """Σ_m (a_m + c_m(i)) z_m(i) + φ·θ_i + b_i of one request, z the arsinh of a base's standardized scores.

    `scores` `[M, I]`, −inf for what a base leaves out; `by_query` a `[M]`; `by_item` c `[I, M]`; `bias` `[I]`; `phi`
    `[D]`, `theta` `[I, D]`.
    """
    total = np.zeros(scores.shape[1])
    for m, own in enumerate(scores):
        kept = np.isfinite(own)
        own = np.where(kept, own, own[kept].min() if kept.any() else 0.0)[2:]
        deviation = own.std()
        z = np.arcsinh((own - own.mean()) / deviation) if deviation > 0 else np.zeros(len(own))
        total += (by_query[m] + by_item[:, m]) * np.concatenate([[0, 0], z])
    return total + theta @ phi + bias


def mean_softmax_loss(scores, targets, exclude):
    """Mean −log p of a request's targets, p over the items from row 2 on without `exclude`."""
    allowed = [i for i in range(2, len(scores)) if i not in set(exclude)]
    total = np.log(sum(np.exp(scores[i]) for i in allowed))
    return float(np.mean([total - scores[t] for t in targets]))


def following_words(rows: list[tuple[int, list[int]]]) -> list[tuple[int, int]]:
    """Pairs of words of a user's consecutive searches; rows are (user, words) in time order."""
    pairs, last = [], {}
    for user, words in rows:
        if all(w < 2 for w in words) or last.get(user) == words:
            continue
        if user in last:
            pairs += [(a, b) for a in last[user] for b in words if a >= 2 and b >= 2 and a != b]
        last[user] = words
    return pairs


def skip_gram_loss(words: np.ndarray, followers: np.ndarray, word: int, follower: int, drawn: list[int]) -> float:
    """Of one pair, from the two tables."""
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
    loss = -log_sigmoid(words[word] @ followers[follower])
    return loss - sum(log_sigmoid(-words[word] @ followers[n]) for n in drawn if n != follower)
