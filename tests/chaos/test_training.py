"""Whatever of a training run is killed at whichever step: the same loss curve, and little is done again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Trial, Ward
from tests.chaos.training import KINDS, Trainings, Work, kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3900)]

# Of one worker, whose sums have one order.
CURVE = 1e-6


def test_a_run_that_is_killed_ends_with_the_same_curve(ward: Ward, trial: Trial, tmp_path: Path) -> None:
    """Ten points, or one for each kind in the short form: the service, the process of its tasks, the Ray worker that
    takes the steps, Ray with everything.
    """
    points, work = (len(KINDS), Work(400, 40, 16)) if trial.short else (10, Work(1_500, 50, 48))
    trainings = Trainings(ward.mesh, tmp_path)
    try:
        calm = trainings.train(work, [], trial.limit)
        hurt = trainings.train(work, kills(trial.seed, points), trial.limit)
    finally:
        trainings.close()
    assert sorted(calm.losses) == work.reported
    apart = max(abs(loss / calm.losses[step] - 1) for step, loss in hurt.losses.items())
    print(f"losses apart: {apart:.1e}")
    in_time = [step for step in hurt.struck if step < work.steps]
    assert len(in_time) >= 0.75 * points, f"only the kills at {in_time} came before the last step"
    assert hurt.losses == pytest.approx(calm.losses, rel=CURVE)
    assert hurt.digest == calm.digest
    assert not calm.lost()
    # A loss of the Ray worker or of Ray is another attempt, unless the one before had not begun.
    lost = hurt.lost()
    print(f"steps done again: {lost}")
    assert len(lost) >= points // 3
    assert max(lost) <= work.every
