"""What features are worth to classify and to cluster by, defined as mteb defines it (version 2.26).

Classification: `mteb/abstasks/classification.py`. Clustering: `mteb/abstasks/clustering_legacy.py`, the one in which
each set of texts is clustered whole.
"""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, v_measure_score

from training.errors import DataError
from training.scores import Scored
from training.system import Features

SEED = 42
EXPERIMENTS = 10
SAMPLES_PER_LABEL = 8
CLUSTER_BATCH = 500


def drawn_samples(labels: Sequence[str]) -> list[list[int]]:
    """The rows that each experiment learns from, at most 8 of each label.

    Every experiment shuffles by the same seed, but what the one before has shuffled.
    """
    rows = list(range(len(labels)))
    drawn = []
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(rows)
        taken: Counter[str] = Counter()
        chosen = []
        for row in rows:
            if taken[labels[row]] < SAMPLES_PER_LABEL:
                taken[labels[row]] += 1
                chosen.append(row)
        drawn.append(chosen)
    return drawn


def classification_scores(
    train: Features,
    train_labels: Sequence[str],
    samples: Sequence[Sequence[int]],
    test: Features,
    labels: Sequence[str],
) -> Scored:
    """Accuracy and macro F1 of a logistic regression, averaged over the experiments.

    train: [T, H], test: [N, H].   samples: rows of `train` for each experiment.   The example value is the share of
    the experiments in which the text got its label. Raises DataError where there are not two labels to tell apart.
    """
    if len(set(train_labels)) < 2:
        raise DataError("fewer than two labels to learn")
    gold = np.asarray(labels)
    hits, macro = np.zeros(len(gold)), []
    for rows in samples:
        learner = LogisticRegression(max_iter=100, random_state=SEED)
        with warnings.catch_warnings():
            # The definition ends after 100 steps, converged or not.
            warnings.simplefilter("ignore", ConvergenceWarning)
            learner.fit(train[list(rows)], [train_labels[row] for row in rows])
        predicted = learner.predict(test)
        hits += predicted == gold
        macro.append(f1_score(gold, predicted, average="macro", zero_division=0))
    shares = hits / len(samples)
    return Scored({"accuracy": float(np.mean(shares)), "macro f1": float(np.mean(macro))}, {"hits": shares})


def clustering_scores(features: Features, labels: Sequence[str]) -> Scored:
    """V-measure of k-means in small batches, with as many clusters as there are topics.

    features: [N, H].   The example values are the topic and the cluster of each text. Raises DataError where there is
    one topic only, for then every clustering is right.
    """
    topics, gold = np.unique(np.asarray(labels), return_inverse=True)
    if len(topics) < 2:
        raise DataError("fewer than two topics to tell apart")
    means = MiniBatchKMeans(n_clusters=len(topics), batch_size=CLUSTER_BATCH, n_init="auto", random_state=SEED)
    found: NDArray[np.int32] = means.fit(features).labels_
    kind = np.min_scalar_type(len(topics))
    examples = {"topic": gold.astype(kind), "cluster": found.astype(kind)}
    return Scored({"v-measure": float(v_measure_score(gold, found))}, examples)
