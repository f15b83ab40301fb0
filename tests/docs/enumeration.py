"""Every S that a family can draw for a few rows, with its probability; from the definitions, not from the library.

Each generator yields (probability, S [B, k]).  Expectations are finite sums: no sampling, no tolerance but rounding.
"""

import itertools
import math

import torch

# Three nodes whose mean of any polynomial of degree up to 5 is that of N(0, 1).
GAUSS_HERMITE = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))
SIGN = ((-1.0, 1 / 2), (1.0, 1 / 2))


def sparse_entry(s):
    """+-sqrt(s) with probability 1/(2 s) each, else 0: variance 1, fourth moment s."""
    return ((-math.sqrt(s), 1 / (2 * s)), (0.0, 1 - 1 / s), (math.sqrt(s), 1 / (2 * s)))


def signs_of(count):
    yield from itertools.product((-1.0, 1.0), repeat=count)


def matrix(rows):
    return torch.tensor(rows, dtype=torch.float64)


def independent_entries(num_rows, size, entry):
    """Entries that are independent, of the given distribution over the root of k."""
    for cells in itertools.product(entry, repeat=num_rows * size):
        values, shares = zip(*cells, strict=True)
        yield math.prod(shares), matrix(values).view(num_rows, size) / math.sqrt(size)


def starts(num_rows, parts):
    return [part * num_rows // parts for part in range(parts + 1)]


def balanced_count_sketch(num_rows, size):
    bounds = starts(num_rows, size)
    chance = 1 / (math.factorial(num_rows) * 2**num_rows)
    for order in itertools.permutations(range(num_rows)):
        for signs in signs_of(num_rows):
            s = torch.zeros(num_rows, size, dtype=torch.float64)
            for bucket in range(size):
                for position in range(bounds[bucket], bounds[bucket + 1]):
                    s[order[position], bucket] = signs[position]
            yield chance, s


def independent_buckets(num_rows, parts):
    """One signed entry a row in each part of the columns; ``parts`` are the numbers of columns."""
    ends = itertools.accumulate(parts)
    choices = [range(end - width, end) for end, width in zip(ends, parts, strict=True)]
    places = list(itertools.product(*choices * num_rows))
    chance = 1 / (len(places) * 2 ** (num_rows * len(parts)))
    for columns in places:
        for signs in signs_of(len(columns)):
            s = torch.zeros(num_rows, sum(parts), dtype=torch.float64)
            rows = torch.arange(num_rows).repeat_interleave(len(parts))
            s[rows, torch.tensor(columns)] = matrix(signs) / math.sqrt(len(parts))
            yield chance, s


def block_rademacher(num_rows, size, blocks):
    rows, columns = starts(num_rows, blocks), starts(size, blocks)
    chance = 1 / (math.factorial(num_rows) * 2 ** (num_rows * size))
    for order in itertools.permutations(range(num_rows)):
        for signs in signs_of(num_rows * size):
            entries, s = matrix(signs).view(num_rows, size), torch.zeros(num_rows, size, dtype=torch.float64)
            for t in range(blocks):
                for position in range(rows[t], rows[t + 1]):
                    part = slice(columns[t], columns[t + 1])
                    s[order[position], part] = entries[order[position], part] / math.sqrt(columns[t + 1] - columns[t])
            yield chance, s


def hadamard(length):
    return matrix([[(-1.0) ** bin(p & i).count("1") for i in range(length)] for p in range(length)]) / math.sqrt(length)


def cosine(length):
    angle = math.pi * torch.outer(torch.arange(length), 2 * torch.arange(length) + 1).double() / (2 * length)
    scale = torch.full((length, 1), math.sqrt(2 / length), dtype=torch.float64)
    scale[0] = math.sqrt(1 / length)
    return scale * angle.cos()


def hartley(length):
    angle = 2 * math.pi * torch.outer(torch.arange(length), torch.arange(length)).double() / length
    return (angle.cos() + angle.sin()) / math.sqrt(length)


def subsampled_transform(transform, num_rows, size, *, replacement=False, signed=True):
    """S^T = sqrt(P/k) R H D on rows padded to P."""
    length = transform.shape[0]
    draw = itertools.product(range(length), repeat=size) if replacement else itertools.combinations(range(length), size)
    chosen = list(draw)
    all_signs = list(signs_of(num_rows)) if signed else [(1.0,) * num_rows]
    for rows in chosen:
        for signs in all_signs:
            s = (transform[list(rows), :num_rows] * matrix(signs)).T * math.sqrt(length / size)
            yield 1 / (len(chosen) * len(all_signs)), s


def sampled_rows(q, size):
    """With replacement, row i with probability q_i, divided by the root of k q_i."""
    possible = [row for row in range(len(q)) if q[row] > 0]
    for rows in itertools.product(possible, repeat=size):
        s = torch.zeros(len(q), size, dtype=torch.float64)
        for column, row in enumerate(rows):
            s[row, column] = 1 / math.sqrt(size * q[row])
        yield math.prod(float(q[row]) for row in rows), s


def subsets_of_rows(num_rows, size):
    """Without replacement."""
    for rows in itertools.combinations(range(num_rows), size):
        s = torch.zeros(num_rows, size, dtype=torch.float64)
        s[list(rows), range(size)] = math.sqrt(num_rows / size)
        yield 1 / math.comb(num_rows, size), s


def certain_and_sampled_rows(certain, q, size):
    """Some rows as they are, the other columns drawn from the rest, on which q is a distribution."""
    for chance, rest in sampled_rows(q, size - len(certain)):
        first = torch.zeros(len(q), len(certain), dtype=torch.float64)
        first[certain, range(len(certain))] = 1.0
        yield chance, torch.cat([first, rest], dim=1)


def products(first, second):
    """All Kronecker products."""
    second = list(second)
    for (chance, s), (other, t) in itertools.product(first, second):
        yield chance * other, torch.kron(s, t)


def expectation(draws, function):
    """E function(S); the probabilities must sum to one."""
    total = mean = 0.0
    for chance, s in draws:
        total += chance
        mean = mean + chance * function(s)
    assert abs(total - 1) < 1e-12
    return mean


def estimate_error(x, y):
    """S -> |X^T S S^T Y - X^T Y|^2."""
    exact = x.T @ y
    return lambda s: ((x.T @ s) @ (s.T @ y) - exact).square().sum()
