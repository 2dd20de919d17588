"""A map of vectors: where each lies in the plane, and which of them form a cluster.

In: n vectors of length 1. Out: positions `[n, 2]` between 0 and 1, and cluster numbers `[n]`.

How: PCA to 50 numbers, then t-SNE and k-means on those, all scikit-learn's. Measured on 2,541 memories, two shared
cores: t-SNE takes 10 to 15 s and keeps neighbours (trustworthiness 0.994); UMAP 15 s, half of it compiling, and 0.989;
PCA alone no time, and 0.77. For 20,000 memories t-SNE takes 50 s. 500 steps give what scikit-learn's 1,000 give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memvec.extras import import_extra
from memvec.retrieval.exact import Vectors

EXTRA, PURPOSE = "report", "the map of a run"
COMPONENTS = 50
STEPS = 500
PERPLEXITY = 30.0
FEWEST_FOR_TSNE = 10
MOST_CLUSTERS = 12


def principal_components(vectors: Vectors) -> Vectors:
    """Returns the first 50 principal components of vectors, or as many as there are, `[n, c]`.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    decomposition = import_extra("sklearn.decomposition", extra=EXTRA, purpose=PURPOSE)
    if not np.ptp(vectors, axis=0).any():  # one vector, or equal ones, which have no direction
        return np.zeros((len(vectors), 1), dtype=np.float32)
    components = min(COMPONENTS, *vectors.shape)
    found: Vectors = decomposition.PCA(components, svd_solver="covariance_eigh").fit_transform(vectors)
    return found


def positions(components: Vectors) -> NDArray[np.float64]:
    """Returns places in the plane that keep neighbours together, `[n, 2]`, within the unit square.

    Args:
        components: What `principal_components` returned, `[n, c]`.
    """
    plane = np.zeros((len(components), 2), dtype=np.float32)
    plane[:, : components.shape[1]] = components[:, :2]
    spread = float(plane.std())
    if len(plane) >= FEWEST_FOR_TSNE and spread > 0:
        manifold = import_extra("sklearn.manifold", extra=EXTRA, purpose=PURPOSE)
        perplexity = min(PERPLEXITY, (len(plane) - 1) / 3)
        start = plane / spread * 1e-4  # as scikit-learn's own start from principal components
        plane = manifold.TSNE(perplexity=perplexity, init=start, max_iter=STEPS, random_state=0).fit_transform(
            components
        )
    return _within_unit_square(plane.astype(np.float64))


def _within_unit_square(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moves and scales places, both directions alike, so that the longer side fills 0 to 1."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    side = float((high - low).max()) or 1.0
    moved: NDArray[np.float64] = (plane - (low + high) / 2) / side + 0.5
    return moved


def clusters(components: Vectors) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups vectors by k-means.

    Args:
        components: What `principal_components` returned, `[n, c]`.

    Returns:
        The cluster of each, `[n]`, the largest being 0; and for each cluster its vector nearest to its centre.
    """
    clustering = import_extra("sklearn.cluster", extra=EXTRA, purpose=PURPOSE)
    # k-means warns where there are fewer different vectors than clusters.
    wanted = min(MOST_CLUSTERS, max(1, round(np.sqrt(len(components) / 4))), len(np.unique(components, axis=0)))
    model = clustering.KMeans(wanted, n_init=3, random_state=0).fit(components)
    order = np.argsort(-np.bincount(model.labels_, minlength=wanted), kind="stable")
    rank = np.argsort(order)
    own = np.eye(wanted, dtype=bool)[model.labels_]  # [n, wanted]
    central = np.where(own, model.transform(components), np.inf).argmin(axis=0)  # [wanted]
    return rank[model.labels_].astype(np.int64), central[order].astype(np.int64)
