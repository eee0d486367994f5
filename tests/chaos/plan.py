"""When what happens: a seed gives the same plan everywhere, in shares of the job's own stages, not in seconds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.injuries import Injury


@dataclass(frozen=True, order=True)
class Moment:
    """A point of the job.

    Attributes:
        stage: counted from 1.
        share: of the time that the stage takes when nobody disturbs it, from 0 to 1.
    """

    stage: int
    share: float


Plan = list[tuple[Moment, Injury]]


def plan(seed: int, injuries: Sequence[Injury], seconds: Sequence[float], runs: int) -> list[Plan]:
    """Every injury once, spread over some runs of the job; any moment of its stages is as likely as another.

    Args:
        seed: of the random numbers.
        injuries: to be done.
        seconds: that each stage takes undisturbed.
        runs: how many plans.
    """
    rng = random.Random(seed)
    order = list(injuries)
    rng.shuffle(order)
    plans: list[Plan] = [[] for _ in range(runs)]
    for number, injury in enumerate(order):
        plans[number % runs].append((_moment(rng, injury.stages, seconds), injury))
    return [sorted(one, key=lambda entry: entry[0]) for one in plans]


def earlier(plan: Plan) -> Plan:
    """The same injuries at half the share of their stages: what came too late comes in time on the next run."""
    return [(Moment(moment.stage, moment.share / 2), injury) for moment, injury in plan]


def _moment(rng: random.Random, stages: tuple[int, int], seconds: Sequence[float]) -> Moment:
    first, last = stages
    at = rng.uniform(0.0, sum(seconds[first - 1 : last]))
    for stage in range(first, last):
        length = seconds[stage - 1]
        if at < length:
            return Moment(stage, at / length)
        at -= length
    return Moment(last, min(1.0, at / seconds[last - 1]))
