"""Which of the teacher's last filters each student learns: those that fire together stay together.

Source: RoCoIn (arXiv:2406.14185) cuts the graph of filters by normalised cut, our reading. An edge is the cosine of two filters'
activations over the training samples; the cut is scikit-learn's spectral clustering, whose labels come from a QR decomposition
(Damle, Minden and Ying, 2019) and hence from no dice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: No part is smaller than this share of an equal one: a student of three filters would know nothing by itself.
LEAST_SHARE = 0.5

#: Filters that hardly ever fire have no direction; they belong nowhere.
LEAST_NORM = 1e-6


def partition(filters: Floats, parts: int) -> tuple[tuple[int, ...], ...]:
    """Share out the filters: each to exactly one part.

    Args:
        filters: activations `[samples, filters]`.
        parts: how many, at most as many as there are filters.

    Returns:
        The filters of each part, rising; the largest part first.
    """
    affinity = affinity_of(filters)
    fires = np.flatnonzero(np.diagonal(affinity) > 0)
    labels = np.full(len(affinity), -1)
    labels[fires] = _cut(affinity[np.ix_(fires, fires)], parts) if len(fires) > parts else np.arange(len(fires))
    _place(labels, affinity, parts)
    groups = [np.flatnonzero(labels == part) for part in range(parts)]
    groups.sort(key=lambda group: (-len(group), int(group[0])))
    return tuple(tuple(int(index) for index in group) for group in groups)


def affinity_of(filters: Floats) -> npt.NDArray[np.float64]:
    """Cosine of every two filters `[filters, filters]`, 0 where it is below; all 0 for one that never fires."""
    values = filters.astype(np.float64)
    norms = np.sqrt((values**2).sum(0))
    scaled = values / np.where(norms > LEAST_NORM, norms, np.inf)
    return np.asarray(np.maximum(scaled.T @ scaled, 0.0))


def _cut(affinity: npt.NDArray[np.float64], parts: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import SpectralClustering

    if parts == 1:
        return np.zeros(len(affinity), np.int64)
    # A cosine of nearly nothing keeps the graph in one piece, which the eigenvectors need.
    clustering = SpectralClustering(parts, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
    return np.asarray(clustering.fit_predict(affinity + LEAST_NORM), np.int64)


def _place(labels: npt.NDArray[np.int64], affinity: npt.NDArray[np.float64], parts: int) -> None:
    """Filters without a part go to the smallest; then parts below the least size get what suits them best from the largest."""
    sizes = np.bincount(labels[labels >= 0], minlength=parts)
    for index in np.flatnonzero(labels < 0):
        labels[index] = sizes.argmin()
        sizes[labels[index]] += 1
    least = max(1, int(LEAST_SHARE * len(labels) / parts))
    while sizes.min() < least:
        small, large = int(sizes.argmin()), int(sizes.argmax())
        giving = np.flatnonzero(labels == large)
        pull = affinity[np.ix_(giving, labels == small)].sum(1) - affinity[np.ix_(giving, labels == large)].mean(1)
        labels[giving[pull.argmax()]] = small
        sizes[small], sizes[large] = sizes[small] + 1, sizes[large] - 1
