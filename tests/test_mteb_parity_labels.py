"""The same vectors give the same figures here and in mteb: classification and clustering.

Classification is AbsTaskClassification: ten experiments of eight texts a label, drawn by reshuffling with the same
seed, and a logistic regression of 100 steps. Clustering is AbsTaskClusteringLegacy, each set of texts clustered whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb_tasks import fixed_vectors, mteb_scores, toy_pairs

from training.open_system import open_system
from training.system import Side, System

label_scores = pytest.importorskip("training.label_scores")
EXACT = 1e-9
LANGUAGES = ("en-es", "en-ar", "en-ja", "en-de", "en-fr", "en-zh", "en-ru")


@pytest.fixture(scope="module")
def labelled() -> tuple[list[str], list[str]]:
    """Sentences of several languages, and what is done in each: the English one's verb."""
    pairs = [pair for lang in LANGUAGES for pair in toy_pairs("translation_toy", lang)]
    return [text for _, text in pairs], [english.split()[2] for english, _ in pairs]


@pytest.fixture(scope="module")
def fixed(shipped: Path, labelled: tuple[list[str], list[str]]) -> System:
    """The repository's model, one vector for each text."""
    return fixed_vectors(open_system(str(shipped)), labelled[0])


def test_classification_accuracy_and_f1_are_mtebs(fixed: System, labelled: tuple[list[str], list[str]]) -> None:
    texts, labels = labelled
    data = DatasetDict(
        {
            split: Dataset.from_dict({"text": texts[start::2], "label": labels[start::2]})
            for start, split in enumerate(("train", "test"))
        }
    )
    theirs = mteb_scores("Banking77Classification", fixed, data)
    train, test = (Side(texts[start::2], "query") for start in (0, 1))
    reading = fixed.read([train, test])
    samples = label_scores.drawn_samples(labels[::2])
    ours = label_scores.classification_scores(
        reading.features(train), labels[::2], samples, reading.features(test), labels[1::2]
    ).measures
    # More than are drawn, or the drawing would not show.
    assert min(labels[::2].count(label) for label in set(labels)) > 8
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=EXACT)
    assert ours["macro f1"] == pytest.approx(theirs["f1"], abs=EXACT)
    assert 1 / len(set(labels)) < ours["accuracy"] < 1


def test_clustering_v_measure_is_mtebs(fixed: System, labelled: tuple[list[str], list[str]]) -> None:
    texts, labels = labelled
    halves = [(texts[start::2], labels[start::2]) for start in (0, 1)]
    columns = {"sentences": [half for half, _ in halves], "labels": [topics for _, topics in halves]}
    theirs = mteb_scores("TwentyNewsgroupsClustering", fixed, {"test": Dataset.from_dict(columns)})
    ours = []
    for half, topics in halves:
        side = Side(half, "query")
        ours.append(label_scores.clustering_scores(fixed.read([side]).features(side), topics).measures["v-measure"])
    np.testing.assert_allclose(ours, theirs["v_measures"], atol=EXACT, rtol=0)
    assert 0 < np.mean(ours) < 1
