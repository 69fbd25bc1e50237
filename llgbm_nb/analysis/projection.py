"""Maps of deltas, (adapters, 2): t-SNE and principal components, and how two maps are laid over each other.

Both see the deltas' directions only, as the cosine does. Domains are unknown here: no label has a part in a map.
"""

import contextlib

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from .geometry import MANY, directions

COMPONENTS = 50  # of more than MANY adapters, principal ones that t-SNE sees


def tsne(deltas: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """A t-SNE map, (adapters, 2), by scikit-learn with cosine distance; None for fewer than four adapters.

    The perplexity is 30, or a third of the other adapters where there are fewer than 91. Of more than MANY adapters it
    starts from the first two principal components (Kobak and Berens 2019, doi 10.1038/s41467-019-13056-x) and takes the
    distances from the first 50; between rows of length 1, a squared Euclidean one is twice the cosine distance. With
    openTSNE installed (the extra `large`), that draws these maps, and the time per adapter does not grow.
    """
    if len(deltas) < 4:
        return None
    perplexity = min(30.0, (len(deltas) - 1) / 3)
    if len(deltas) <= MANY:
        return TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(deltas)
    rows = directions(deltas).astype(np.float32)
    rows = PCA(min(COMPONENTS, *rows.shape), random_state=seed).fit_transform(rows)
    init = "pca" if np.ptp(rows, axis=0).any() else "random"
    with contextlib.suppress(ImportError):
        import openTSNE

        settings = dict(initialization=init, perplexity=perplexity, n_jobs=-1, random_state=seed)
        return np.asarray(openTSNE.TSNE(**settings).fit(rows), np.float32)
    return TSNE(init=init, perplexity=perplexity, random_state=seed).fit_transform(rows)


def pca(deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map (adapters, 2) by principal components of the directions, and each one's share of the variance, (2,).

    What too few adapters lack is zero.
    """
    points, share = np.zeros((len(deltas), 2)), np.zeros(2)
    rows = directions(deltas) if len(deltas) > 1 else np.zeros((1, 1))
    if np.ptp(rows, axis=0).any():
        count = min(2, *rows.shape)
        model = PCA(count, svd_solver="full" if min(rows.shape) < 200 else "arpack", random_state=0)
        points[:, :count], share[:count] = model.fit_transform(rows), model.explained_variance_ratio_
    return points, share


def turned(points: np.ndarray, to: np.ndarray | None, mirror_only: bool = False) -> np.ndarray:
    """A map (adapters, 2) turned and mirrored (`mirror_only`: its axes kept) to lie as `to` does; distances stay."""
    if to is None or to.shape != points.shape:
        return points
    if mirror_only:
        return points * np.where((points * to).sum(axis=0) < 0, -1.0, 1.0)
    return points @ orthogonal_procrustes(points, to)[0]
