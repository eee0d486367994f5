"""Reliability of annotators and the most probable answers, from nothing but the answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.dataset.engines.intervals import PERCENTILES, RESAMPLES

# The prior: every row of a confusion matrix, and the shares of the classes, start with the weight of one answer, spread
# evenly over the classes (a Dirichlet distribution, Perks 1947). It keeps what was never seen possible, and outweighs
# nobody who gave a handful of answers.
PRIOR_ANSWERS = 1.0
# EM ends when the log-likelihood grows by less than this an answer, in nats; it mostly takes some tens of rounds.
_LEAST_GAIN = 1e-7
_ROUNDS = 500
# Numbers of the largest table, (answers, classes) or (workers, classes, classes): 240 MB.
_MOST_CELLS = 30_000_000


@dataclass(frozen=True, slots=True)
class Reliability:
    """What Dawid and Skene's model says.

    Attributes:
        classes: (classes,) numbers of those that were ever answered, ascending.
        workers: (workers,) numbers of those whose answers overlap with others', ascending.
        prior: (classes,) shares of the true classes.
        confusion: (workers, classes, classes) probability of an answer (column) by true class (row).
        expected: (workers, classes, classes) expected numbers of answers, without the prior.
        items: (items,) numbers of the items that have a probability, ascending.
        posterior: (items, classes) of the true class.
        log_likelihood: Of every round, with the logarithm of the prior's density; it never falls.
    """

    classes: np.ndarray
    workers: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    expected: np.ndarray
    items: np.ndarray
    posterior: np.ndarray
    log_likelihood: list[float]

    def accuracy(self) -> np.ndarray:
        """(workers,) probability that an answer is right."""
        return np.einsum("k,wkk->w", self.prior, self.confusion)

    def bounds(self, seed: int) -> np.ndarray:
        """(2, workers) the 95 % interval of `accuracy`.

        The diagonal of a confusion matrix has a Beta distribution given the expected numbers of answers; the accuracy,
        a weighted sum of them, is given the Beta distribution with its mean and variance. A bootstrap over items would
        fit the model anew each time, which takes minutes. The true classes are only expected, so the interval is
        somewhat narrow where the model is unsure of many items.
        """
        rows = self.expected.sum(axis=2) + PRIOR_ANSWERS
        right = np.einsum("wkk->wk", self.confusion)
        average = self.accuracy()
        variance = (self.prior**2 * right * (1 - right) / (rows + 1)).sum(axis=1)
        weight = average * (1 - average) / variance - 1
        drawn = np.random.default_rng(seed).beta(average * weight, (1 - average) * weight, (RESAMPLES, len(average)))
        return np.percentile(drawn, PERCENTILES, axis=0)


def dawid_skene(items: np.ndarray, workers: np.ndarray, answers: np.ndarray) -> Reliability | None:
    """Fits confusion matrices of workers and true classes of items to each other by expectation maximisation.

    Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied
    Statistics 28, 20-28, with `PRIOR_ANSWERS` added. It starts from the shares of the votes. Items with one answer say
    nothing about who gave it and take no part, but get the probabilities that follow for them.

    Args:
        items, workers, answers: (answers,) numbers of the item, the worker and the class that was answered, ascending
            by item.

    Returns:
        None where there is nothing to fit: fewer than two classes, or no item with two answers; and where the tables
        would be too large.
    """
    classes, answers = np.unique(answers, return_inverse=True)
    count = len(classes)
    shared = np.bincount(items)[items] > 1 if len(items) else np.zeros(0, bool)
    known = np.unique(workers[shared])
    if count < 2 or not len(known) or count * max(len(items), len(known) * count) > _MOST_CELLS:
        return None
    model = _Model(items[shared], np.searchsorted(known, workers[shared]), answers[shared], count)
    posterior = model.votes()
    history: list[float] = []
    while True:
        prior, confusion, expected = model.maximise(posterior)
        posterior, likelihood = model.expect(prior, confusion)
        history.append(likelihood)
        if len(history) == _ROUNDS or (len(history) > 1 and likelihood - history[-2] < _LEAST_GAIN * shared.sum()):
            break
    answered = np.isin(workers, known)
    everything = _Model(items[answered], np.searchsorted(known, workers[answered]), answers[answered], count)
    posterior, _ = everything.expect(prior, confusion)
    return Reliability(classes, known, prior, confusion, expected, everything.items, posterior, history)


class _Model:
    """The two steps of EM over one set of answers."""

    def __init__(self, items: np.ndarray, workers: np.ndarray, answers: np.ndarray, count: int) -> None:
        self.items, self._starts, self._item = np.unique(items, return_index=True, return_inverse=True)
        self._count, self._workers, self._answers = count, int(workers.max()) + 1, answers
        self._cell = workers * count + answers

    def votes(self) -> np.ndarray:
        """(items, classes) shares of the answers."""
        votes = np.bincount(self._item * self._count + self._answers, minlength=len(self.items) * self._count)
        votes = votes.reshape(-1, self._count)
        return votes / votes.sum(axis=1, keepdims=True)

    def maximise(self, posterior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shares of the classes, confusion matrices and expected answers that fit the probabilities best."""
        smoothing = PRIOR_ANSWERS / self._count
        cells = self._workers * self._count
        by_class = [np.bincount(self._cell, weights[self._item], cells) for weights in posterior.T]
        expected = np.stack(by_class).reshape(self._count, self._workers, self._count).transpose(1, 0, 2)
        smoothed = expected + smoothing
        prior = posterior.sum(axis=0) + smoothing
        return prior / prior.sum(), smoothed / smoothed.sum(axis=2, keepdims=True), expected

    def expect(self, prior: np.ndarray, confusion: np.ndarray) -> tuple[np.ndarray, float]:
        """Probabilities of the true classes, and the logarithm of the likelihood with the prior's density."""
        smoothing = PRIOR_ANSWERS / self._count
        # By worker and answer, so that each answer picks one row.
        logs = np.log(confusion).transpose(0, 2, 1).reshape(-1, self._count)
        joint = np.add.reduceat(logs[self._cell], self._starts, axis=0) + np.log(prior)
        largest = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - largest)
        total = share.sum(axis=1, keepdims=True)
        likelihood = float((largest + np.log(total)).sum())
        return share / total, likelihood + smoothing * float(np.log(confusion).sum() + np.log(prior).sum())
