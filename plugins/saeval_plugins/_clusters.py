"""Clusters points into the largest number of groups that is stable under bootstrap resampling."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SMALLEST = 3  # minimum points per group
_SMALLEST_SHARE = 0.1  # minimum share of the points per group
_SURE = 0.7  # share of resamples that must reach a number of groups
_AGAIN = 0.75  # minimum Jaccard index of a group that is found again (Hennig 2007)


class Groups(NamedTuple):
    """Points in groups.

    Attributes:
        labels: The group of each point; the largest group is 0.  [points]
        shares: Share of the resamples in which each number of groups was found.
    """

    labels: NDArray[np.int64]
    shares: dict[int, float]

    @property
    def number(self) -> int:
        """Number of groups."""
        return int(self.labels.max(initial=0)) + 1


def stable_groups(points: NDArray[np.floating], most: int, resamples: int, rng: np.random.Generator) -> Groups:
    """Group points by Ward's method into the largest number of groups that resamples reproduce.

    In each bootstrap resample (points drawn twice count once), the number is the largest for which every group of the
    full data is found again: some group of the resample has a Jaccard index of .75 or more with it (Hennig,
    "Cluster-wise assessment of cluster stability", 2007). Groups with fewer than 3 points or 10 % of them count as
    outliers, and numbers that produce such groups are excluded. The result is the largest number that 70 % of the
    resamples reach.

    Args:
        points: The points.  [points, dimensions]
        most: Maximum number of groups.
        resamples: Number of resamples.
        rng: Random number generator.
    """
    import numpy as np

    n = len(points)
    whole = {k: labels for k, labels in _ward(points, most).items() if _large_enough(labels)}
    if not whole:
        return Groups(np.zeros(n, dtype=np.int64), {1: 1.0})
    found: Counter[int] = Counter()
    for _ in range(resamples):
        drawn = np.unique(rng.integers(n, size=n))
        again = _ward(points[drawn], most)
        stable = [k for k, labels in whole.items() if k in again and _found_again(labels[drawn], again[k], k)]
        found[max(stable, default=1)] += 1
    number = max(k for k in (1, *whole) if sum(n for j, n in found.items() if j >= k) >= _SURE * resamples)
    labels = whole.get(number, np.zeros(n, dtype=np.int64))
    order = np.argsort(-np.bincount(labels), kind="stable")
    return Groups(np.argsort(order)[labels], {k: found[k] / resamples for k in sorted(found)})


def _ward(points: NDArray[np.floating], most: int) -> dict[int, NDArray[np.int64]]:
    """Return the grouping for each number of groups from 2 to `most`, except numbers that ties make impossible."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(points) < 2:
        return {}
    tree = linkage(points, "ward")
    cuts = {k: fcluster(tree, k, "maxclust").astype("int64") - 1 for k in range(2, min(most, len(points)) + 1)}
    return {k: labels for k, labels in cuts.items() if labels.max() == k - 1}


def _large_enough(labels: NDArray[np.int64]) -> bool:
    import numpy as np

    return bool(np.bincount(labels).min() >= max(_SMALLEST, _SMALLEST_SHARE * len(labels)))


def _found_again(labels: NDArray[np.int64], again: NDArray[np.int64], k: int) -> bool:
    """Return whether each group, restricted to the points drawn, matches some group of the resample."""
    import numpy as np

    for group in range(k):
        own = labels == group
        indices = [np.count_nonzero(own & (again == g)) / np.count_nonzero(own | (again == g)) for g in range(k)]
        if not own.any() or max(indices) < _AGAIN:
            return False
    return True
