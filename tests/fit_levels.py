#!/usr/bin/env python3
"""Fit the 16 levels of q4 (jmb_q4_levels) and print them, plus 128, and the error that they leave.

Lloyd-Max over blocks of 32 numbers, each block with the least-squares scale of its best codes; two parts of
Gaussian numbers to one of Student-t with 5 degrees of freedom, whose tails are nearer to those of real
weights. Needs numpy.
"""
import numpy as np

RNG = np.random.default_rng(1)
STARTS = [0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2]  # of the scale, in units of the largest number
BLOCKS, ROUNDS = 4000, 25


def blocks():
    """Gaussian, Laplace and Student-t blocks of unit energy."""
    draws = (RNG.normal(size=(BLOCKS, 32)), RNG.laplace(size=(BLOCKS, 32)), RNG.standard_t(5, size=(BLOCKS, 32)))
    return [x / np.sqrt((x**2).mean()) for x in draws]


def quantise(x, levels):
    """Scale and codes of each block with the least squared error, over all starts and both signs."""
    error, scale, codes = np.full(len(x), np.inf), np.zeros(len(x)), np.zeros(x.shape, int)
    largest = np.abs(x).max(1)
    middle = (levels[1:] + levels[:-1]) / 2
    for start in STARTS:
        for sign in (1, -1):
            code = np.searchsorted(middle, x / (sign * start * largest)[:, None])
            q = levels[code]
            s = (x * q).sum(1) / np.maximum((q * q).sum(1), 1e-30)
            e = ((x - s[:, None] * q) ** 2).sum(1)
            better = e < error
            error[better], scale[better], codes[better] = e[better], s[better], code[better]
    return scale, codes, error


def fit():
    first, second = blocks(), blocks()
    train = np.concatenate([first[0], second[0], first[2]])
    levels = np.linspace(-1, 1, 16)
    levels = np.sign(levels) * np.abs(levels) ** 1.2
    for _ in range(ROUNDS):
        scale, codes, _ = quantise(train, levels)
        sums, weights = np.zeros(16), np.zeros(16)
        np.add.at(sums, codes, scale[:, None] * train)
        np.add.at(weights, codes, np.repeat((scale**2)[:, None], 32, 1))
        levels = np.sort(sums / np.maximum(weights, 1e-9))
        levels /= np.abs(levels).max()
    return np.round(levels * 127).astype(int)


levels = fit()
print("levels + 128:", ", ".join(str(v + 128) for v in levels))
for name, x in zip(("Gaussian", "Laplace", "Student-t"), blocks()):
    scale, codes, _ = quantise(x, levels / 127)
    rest = x - scale.astype(np.float16).astype(float)[:, None] * (levels / 127)[codes]
    print(f"{name}: {100 * np.sqrt((rest**2).sum() / (x**2).sum()):.2f} % left")
