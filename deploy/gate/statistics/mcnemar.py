"""Exact McNemar test: are flips in one direction as likely as in the other?"""

from __future__ import annotations


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p-value (no mid-p): twice the smaller binomial tail of ``fixed + broken`` fair coins, at most 1.

    Summed in integers, so that nothing is rounded before the one division.
    """
    flips, fewer = fixed + broken, min(fixed, broken)
    tail = ways = 1
    for heads in range(fewer):
        ways = ways * (flips - heads) // (heads + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**flips))
