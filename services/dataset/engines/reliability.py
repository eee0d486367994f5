"""Reliability of annotators and the most probable answers, from nothing but the answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.dataset.engines.intervals import PERCENTILES

# The prior: every row of a worker's confusion matrix starts with the weight of one answer, spread as those of all
# workers are when votes are taken for the truth, and the shares of the classes with one answer spread evenly. It
# keeps what was never seen possible. Spread evenly over the row too, it would count as four errors of five, and a
# good worker's accuracy would be too low by as much as its interval is wide.
PRIOR_ANSWERS = 1.0
# EM ends when the log-likelihood grows by less than this an answer, in nats; it mostly takes some tens of rounds.
_LEAST_GAIN = 1e-7
_ROUNDS = 500
# Draws of the chain behind an interval, after those that it takes to leave the estimate behind. The bounds of three
# hundred are known to a tenth of the interval, and each takes as long as a round of EM.
_DRAWS, _FIRST_DRAWS = 300, 30
# Rates of all workers together, (workers, classes, classes), that are drawn in ten seconds; and numbers of the largest
# table, (answers, classes), 240 MB.
_MOST_RATES, _MOST_CELLS = 500_000, 30_000_000


@dataclass(frozen=True, slots=True)
class Reliability:
    """What Dawid and Skene's model says.

    Attributes:
        classes: (classes,) numbers of those that were ever answered, ascending.
        workers: (workers,) numbers of those whose answers overlap with others', ascending.
        prior: (classes,) shares of the true classes.
        confusion: (workers, classes, classes) probability of an answer (column) by true class (row).
        bounds: (2, workers) the 95 % interval of `accuracy`.
        items: (items,) numbers of the items that have a probability, ascending.
        posterior: (items, classes) of the true class.
        log_likelihood: Of every round, with the logarithm of the prior's density; it never falls.
    """

    classes: np.ndarray
    workers: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    bounds: np.ndarray
    items: np.ndarray
    posterior: np.ndarray
    log_likelihood: list[float]

    def accuracy(self) -> np.ndarray:
        """(workers,) probability that an answer is right."""
        return _accuracy(self.prior, self.confusion)


def dawid_skene(items: np.ndarray, workers: np.ndarray, answers: np.ndarray, seed: int) -> Reliability | None:
    """Fits confusion matrices of workers and true classes of items to each other by expectation maximisation.

    Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied
    Statistics 28, 20-28, with `PRIOR_ANSWERS` added. It starts from the shares of the votes. Items with one answer say
    nothing about who gave it and take no part, but get the probabilities that follow for them.

    Args:
        items, workers, answers: (answers,) numbers of the item, the worker and the class that was answered, ascending
            by item.
        seed: Of the intervals.

    Returns:
        None where there is nothing to fit: fewer than two classes, or no item with two answers; and where the tables
        would be too large (`_MOST_RATES`, `_MOST_CELLS`).
    """
    classes, answers = np.unique(answers, return_inverse=True)
    count = len(classes)
    shared = np.bincount(items)[items] > 1 if len(items) else np.zeros(0, bool)
    known = np.unique(workers[shared])
    if count < 2 or not len(known) or len(known) * count**2 > _MOST_RATES or len(items) * count > _MOST_CELLS:
        return None
    model = _Model(items[shared], np.searchsorted(known, workers[shared]), answers[shared], count)
    posterior = model.votes()
    history: list[float] = []
    while True:
        prior, confusion = model.maximise(posterior)
        posterior, likelihood = model.expect(prior, confusion)
        history.append(likelihood)
        if len(history) == _ROUNDS or (len(history) > 1 and likelihood - history[-2] < _LEAST_GAIN * shared.sum()):
            break
    drawn = model.accuracies(posterior, np.random.default_rng(seed))
    bounds = _bounds(drawn, _accuracy(prior, confusion))
    answered = np.isin(workers, known)
    everything = _Model(items[answered], np.searchsorted(known, workers[answered]), answers[answered], count)
    posterior, _ = everything.expect(prior, confusion)
    return Reliability(classes, known, prior, confusion, bounds, everything.items, posterior, history)


class _Model:
    """One set of answers, with what is asked of it by turns: the true classes, and the parameters."""

    def __init__(self, items: np.ndarray, workers: np.ndarray, answers: np.ndarray, count: int) -> None:
        self.items, self._starts, self._item = np.unique(items, return_index=True, return_inverse=True)
        self._count, self._workers, self._answers = count, int(workers.max()) + 1, answers
        self._cell = workers * count + answers
        pooled = self._expected(self.votes()).sum(axis=0) + 1 / count
        self._row_prior = PRIOR_ANSWERS * pooled / pooled.sum(axis=1, keepdims=True)
        self._class_prior = PRIOR_ANSWERS / count

    def votes(self) -> np.ndarray:
        """(items, classes) shares of the answers."""
        votes = np.bincount(self._item * self._count + self._answers, minlength=len(self.items) * self._count)
        votes = votes.reshape(-1, self._count)
        return votes / votes.sum(axis=1, keepdims=True)

    def maximise(self, posterior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the classes and confusion matrices that fit the probabilities best."""
        confusion = self._expected(posterior) + self._row_prior
        prior = posterior.sum(axis=0) + self._class_prior
        return prior / prior.sum(), confusion / confusion.sum(axis=2, keepdims=True)

    def expect(self, prior: np.ndarray, confusion: np.ndarray) -> tuple[np.ndarray, float]:
        """Probabilities of the true classes, and the logarithm of the likelihood with the prior's density."""
        logs = np.log(confusion)
        # By worker and answer, so that each answer picks one row.
        by_answer = logs.transpose(0, 2, 1).reshape(-1, self._count)
        joint = np.add.reduceat(by_answer[self._cell], self._starts, axis=0) + np.log(prior)
        largest = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - largest)
        total = share.sum(axis=1, keepdims=True)
        density = (self._row_prior * logs).sum() + self._class_prior * np.log(prior).sum()
        return share / total, float((largest + np.log(total)).sum() + density)

    def accuracies(self, posterior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Accuracies of the workers drawn from their distribution given all answers, (draws, workers).

        By turns the true classes are drawn given the parameters, and the parameters given the true classes (Tanner and
        Wong 1987, "The calculation of posterior distributions by data augmentation", JASA 82, 528-540), beginning with
        the estimate.
        """
        drawn: list[np.ndarray] = []
        for _ in range(_FIRST_DRAWS + _DRAWS):
            classes = _draw_classes(posterior, rng)
            confusion = _draw_shares(self._counts(classes) + self._row_prior, rng)
            prior = _draw_shares(np.bincount(classes, minlength=self._count) + self._class_prior, rng)
            posterior, _ = self.expect(prior, confusion)
            drawn.append(_accuracy(prior, confusion))
        return np.stack(drawn[_FIRST_DRAWS:])

    def _expected(self, posterior: np.ndarray) -> np.ndarray:
        """(workers, classes, classes) expected numbers of answers by true class and answer."""
        cells = self._workers * self._count
        by_class = [np.bincount(self._cell, weights[self._item], cells) for weights in posterior.T]
        return np.stack(by_class).reshape(self._count, self._workers, self._count).transpose(1, 0, 2)

    def _counts(self, classes: np.ndarray) -> np.ndarray:
        """`_expected` where the true classes, (items,), are known."""
        cells = self._cell * self._count + classes[self._item]
        counts = np.bincount(cells, minlength=self._workers * self._count**2)
        return counts.reshape(self._workers, self._count, self._count).transpose(0, 2, 1)


def _accuracy(prior: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    return np.einsum("k,wkk->w", prior, confusion)


def _bounds(drawn: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """The 95 % interval with the spread of what was drawn, around the estimate.

    The mean of what was drawn lies nearer to the middle, because the rates of a good worker can hardly be better than
    they are and easily be worse. With known rates the estimate errs less, and the interval around it holds them more
    often (docs/architecture/agreement.md has the figures). Logarithms of odds keep it between 0 and 1.
    """
    odds = _log_odds(drawn)
    centred = odds - odds.mean(axis=0) + _log_odds(estimate)
    return np.percentile(1 / (1 + np.exp(-centred)), PERCENTILES, axis=0)


def _log_odds(shares: np.ndarray) -> np.ndarray:
    # No number of answers tells a share nearer to 0 or 1 from them.
    shares = shares.clip(1e-6, 1 - 1e-6)
    return np.log(shares / (1 - shares))


def _draw_classes(posterior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    below = np.cumsum(posterior, axis=1) < rng.random((len(posterior), 1))
    # The last sum is 1 but for rounding.
    return below.sum(axis=1).clip(max=posterior.shape[1] - 1)


def _draw_shares(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dirichlet's distribution along the last axis. Shares too small for a float stay above 0: their logarithms are
    taken."""
    drawn = np.maximum(rng.standard_gamma(weights), 1e-300)
    return drawn / drawn.sum(axis=-1, keepdims=True)
