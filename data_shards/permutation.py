"""Keyed permutations of [0, size) that are computed, never stored.

A Feistel network over pairs (left, right) of numbers below `side`, with side * side >= size, is a bijection of
[0, side * side); walking on until the value is below `size` ("cycle walking") makes it one of [0, size).

The mixing is our own, since an order must outlive the random streams of any library's version.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), their generalised Feistel cipher; Steele,
Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014), for the mixing constants.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # four make it pseudo-random for large domains; small ones need more
_STRIDE = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: neighbouring numbers get unlike keys

UInts = NDArray[np.uint64]


def round_keys(identity: str) -> UInts:
    """Return the keys of the permutation with this name: [ROUNDS, 1]."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)[:, None]


def keys_of(base: UInts, numbers: NDArray[np.int64]) -> UInts:
    """Derive the keys of many permutations from those of one: [ROUNDS, n] for n numbers."""
    return _mix(base + (numbers.astype(np.uint64) + np.uint64(1)) * _STRIDE)


def permute(indices: NDArray[np.int64], size: int | NDArray[np.int64], keys: UInts) -> NDArray[np.int64]:
    """Map indices below `size` to where the permutation of [0, size) takes them.

    Args:
        indices: [n], each at least 0 and below its size.
        size: of one domain for all, or [n] of each.
        keys: [ROUNDS, 1] for all, or [ROUNDS, n] for each; see `round_keys` and `keys_of`.
    """
    values = indices.astype(np.uint64)
    sizes = np.broadcast_to(np.asarray(size, dtype=np.uint64), values.shape)
    sides = _root_up(sizes)
    keys = np.broadcast_to(keys, (ROUNDS, len(values)))
    values = _feistel(values, sides, keys)
    # A domain exceeds its size by less than two sides, so few values walk, and not far.
    while len(outside := np.flatnonzero(values >= sizes)):
        values[outside] = _feistel(values[outside], sides[outside], keys[:, outside])
    return values.astype(np.int64)


def _root_up(sizes: UInts) -> UInts:
    """Return the least number whose square is at least the size (exact: sizes are below 2**52)."""
    roots: UInts = np.floor(np.sqrt((sizes - np.uint64(1)).astype(np.float64))).astype(np.uint64) + np.uint64(1)
    return roots


def _feistel(values: UInts, sides: UInts, keys: UInts) -> UInts:
    left, right = values // sides, values % sides
    for key in keys:
        left, right = right, (left + _mix(right + key) % sides) % sides
    joined: UInts = left * sides + right
    return joined


def _mix(values: UInts) -> UInts:
    """Scatter 64 bits over 64 bits (the finaliser of SplitMix64); products wrap, as they should."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInts = values ^ (values >> np.uint64(31))
    return mixed
