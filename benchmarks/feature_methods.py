"""Ways to tell which passages belong together: nearest neighbor and linear probe.

A passage is a row of one or two blocks of features: dense (N, C) arrays or sparse matrices of unit rows. What
the second counts for is chosen on a fifth of the training passages, and so is the probe's penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler, normalize

Blocks = list[Any]
Labels = npt.NDArray[np.int64]
WEIGHTS = (0.25, 0.5, 1.0, 2.0)
PENALTIES = (0.1, 1.0, 10.0, 100.0)
Prepare = Callable[[Labels, Labels], tuple[Blocks, Blocks]]
"""From the indices of training and test passages to their blocks: whatever is fitted sees the former only."""


def dense(features: npt.NDArray[np.float32], *, components: int = 0) -> Prepare:
    """Numbers measured against mean and deviation, rows of length 1; `components`: their PCA of that size."""

    def prepare(train: Labels, test: Labels) -> tuple[Blocks, Blocks]:
        scaler = StandardScaler().fit(features[train])
        parts = [scaler.transform(features[rows]) for rows in (train, test)]
        if components:
            pca = PCA(min(components, *parts[0].shape), random_state=0).fit(parts[0])
            parts = [pca.transform(part) for part in parts]
        return [normalize(parts[0])], [normalize(parts[1])]

    return prepare


def tf_idf(texts: list[str]) -> Prepare:
    """Words of the training passages, weighted by how rare they are, rows of length 1."""

    def prepare(train: Labels, test: Labels) -> tuple[Blocks, Blocks]:
        vectorizer = TfidfVectorizer(sublinear_tf=True)
        return (
            [vectorizer.fit_transform([texts[row] for row in train])],
            [vectorizer.transform([texts[row] for row in test])],
        )

    return prepare


def both(first: Prepare, second: Prepare) -> Prepare:
    """The blocks of one beside those of the other."""

    def prepare(train: Labels, test: Labels) -> tuple[Blocks, Blocks]:
        (train_1, test_1), (train_2, test_2) = first(train, test), second(train, test)
        return train_1 + train_2, test_1 + test_2

    return prepare


def accuracies(
    prepare: Prepare, labels: Labels, train: Labels, test: Labels, seed: int
) -> tuple[float, float]:
    """The share of test passages whose label the nearest neighbor, and the linear probe, gets right."""
    known, asked = prepare(train, test)
    order = np.random.default_rng(seed).permutation(len(train))
    inner, held = order[len(order) // 5 :], order[: len(order) // 5]
    inner_blocks, held_blocks = ([block[rows] for block in known] for rows in (inner, held))
    truth, answer = labels[train], labels[test]

    def share(predicted: Labels, right: Labels) -> float:
        return float((predicted == right).mean())

    weights = (1.0,) if len(known) == 1 else WEIGHTS
    weight = max(
        weights, key=lambda one: share(neighbors(inner_blocks, held_blocks, truth[inner], one), truth[held])
    )
    nearest = share(neighbors(known, asked, truth, weight), answer)
    weight, penalty = max(
        ((one, penalty) for one in weights for penalty in PENALTIES),
        key=lambda pair: share(probe(inner_blocks, held_blocks, truth[inner], *pair), truth[held]),
    )
    return nearest, share(probe(known, asked, truth, weight, penalty), answer)


def neighbors(known: Blocks, asked: Blocks, labels: Labels, weight: float) -> Labels:
    """The label of each passage's nearest one, by the sum of the blocks' cosines."""
    nearness = np.zeros((asked[0].shape[0], known[0].shape[0]))
    for number, (one, other) in enumerate(zip(asked, known)):
        product = one @ other.T
        nearness += (weight if number else 1.0) * (product.toarray() if sparse.issparse(product) else product)
    return labels[nearness.argmax(1)]


def probe(known: Blocks, asked: Blocks, labels: Labels, weight: float, penalty: float) -> Labels:
    """What a linear classifier, fitted to the known passages, says of the others."""
    model = RidgeClassifier(alpha=penalty, solver="lsqr" if sparse.issparse(known[0]) else "auto")
    model.fit(beside(known, weight), labels)
    return model.predict(beside(asked, weight))


def beside(blocks: Blocks, weight: float) -> Any:
    """The blocks as one matrix; the second times `weight`. Columns of dense ones are of comparable size."""
    scaled = [block * (weight if number else 1.0) for number, block in enumerate(blocks)]
    if any(sparse.issparse(block) for block in scaled):
        return sparse.hstack(scaled).tocsr()
    return np.concatenate(scaled, 1)
