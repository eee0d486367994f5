"""What a model must beat: the most frequent answer, and a bag of words.

The bag of words is multinomial logistic regression over TF-IDF of words and word pairs, fitted on the rows that the
model learned from (scikit-learn; Pedregosa et al. 2011, JMLR 12, 2825-2830).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# Enough to fit well in seconds; more rows change the figure by less than its interval.
_MOST_ROWS = 20_000
_MOST_FEATURES = 50_000


def majority(test_answers: Sequence[str]) -> str:
    """The most frequent answer of the test rows: no constant answer does better on them. Ties by name.

    The most frequent answer of the rows learned from may be rare here, which would lower the bar of a gate.
    """
    counts = Counter(test_answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def bag_of_words(
    train_texts: Sequence[str], train_answers: Sequence[str], test_texts: Sequence[str], seed: int
) -> list[str] | None:
    """An answer for each test row; None when the rows learned from have fewer than two different answers."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    if len(set(train_answers)) < 2:
        return None
    order: list[int] = np.random.default_rng(seed).permutation(len(train_texts)).tolist()
    chosen = order[:_MOST_ROWS]
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=2 if len(chosen) > 1000 else 1, max_features=_MOST_FEATURES, ngram_range=(1, 2)
    )
    features = vectorizer.fit_transform([train_texts[i] for i in chosen])
    classifier = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=1e-3, random_state=seed)
    classifier.fit(features, [train_answers[i] for i in chosen])
    return [str(answer) for answer in classifier.predict(vectorizer.transform(test_texts))]
