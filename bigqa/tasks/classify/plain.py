"""What labels come to without a model: the most frequent one, and a bag of words. In: examples. Out: scores by name."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigqa.language import tr
from bigqa.tasks.classify.scoring import score
from bigqa.tasks.labelled import Example

LEAST_TEXTS = 2
"""A word that fewer texts have tells nothing of others."""
Scores = dict[str, Any]


def plain_scores(
    train: Sequence[Example], dev: Sequence[Example], labels: Sequence[str], *, several: bool
) -> dict[str, Scores]:
    """Return the scores on `dev` of what knows `train` alone. Raises: BigqaError without scikit-learn."""
    found = {tr("the most frequent label"): _most_frequent(train, dev, labels)}
    found[tr("a bag of words")] = _bag_of_words(train, dev, labels, several=several)
    wanted = [one.labels for one in dev]
    return {
        name: score(wanted, list(shares_NC), labels, several=several, chosen=None, choose=False).scores
        for name, shares_NC in found.items()
    }


def _most_frequent(train: Sequence[Example], dev: Sequence[Example], labels: Sequence[str]) -> Any:
    counts = Counter(name for one in train for name in one.labels)
    shares_C = np.array([counts[name] == max(counts.values()) for name in labels], dtype=float)
    return np.tile(shares_C, (len(dev), 1))


def _bag_of_words(train: Sequence[Example], dev: Sequence[Example], labels: Sequence[str], *, several: bool) -> Any:
    """Return probabilities of a logistic regression on words' weights (tf-idf), of several labels one for each."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    words = TfidfVectorizer(token_pattern=r"\w+", min_df=LEAST_TEXTS, sublinear_tf=True)
    known, asked = words.fit_transform(map(_joined, train)), words.transform(map(_joined, dev))
    model = LogisticRegression(C=10.0, max_iter=1000)
    if not several:
        model.fit(known, [labels.index(one.labels[0]) for one in train])
        shares_NC = np.zeros((len(dev), len(labels)))
        shares_NC[:, model.classes_] = model.predict_proba(asked)
        return shares_NC
    wanted_NC = np.array([[name in one.labels for name in labels] for one in train], dtype=int)
    return OneVsRestClassifier(model).fit(known, wanted_NC).predict_proba(asked)


def _joined(one: Example) -> str:
    return one.text if isinstance(one.text, str) else " ".join(one.text)
