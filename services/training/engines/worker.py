"""One worker of a run: every phase in turn, figures, checkpoints and, from the leading worker, the finished weights."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig

from libs.common.blobs import BlobStore
from libs.compute.context import EnginePaused
from services.training.domain.halving import rung_step
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.base import BaseText
from services.training.engines.batches import Rows
from services.training.engines.checkpoint_writer import CheckpointWriter
from services.training.engines.checkpoints import (
    Json,
    read_kept,
    read_optimiser,
    read_progress,
    read_weights,
    write_kept,
)
from services.training.engines.group import Group
from services.training.engines.loop import PhaseLoop, Step, check_loss
from services.training.engines.measuring import measure_rates, peak_bytes
from services.training.engines.methods import METHODS
from services.training.engines.methods.method import Learning, Start, Work
from services.training.engines.model import load_weights, sequence_length, trained_weights
from services.training.engines.probe import pretraining_effect
from services.training.engines.reports import Reports
from services.training.engines.scorer import Scorer, new_scorer
from services.training.engines.sharding import is_sharded, place, whole_weights
from services.training.engines.start import Model, bare, finished_files, starting_model

METRICS_EVERY = 10
# Asking costs a message to the carrier.
ASK_SECONDS = 0.5
# The last loss is a mean: a single batch says little.
_LAST_STEPS = 20


@dataclass(frozen=True)
class PhaseData:
    """Rows to learn from and, where there is a validation version, rows that are held out.

    Attributes:
        frozen: loads the model version that the phase asks, for a phase that has one.
    """

    train: Rows
    heldout: Rows | None
    frozen: Callable[[], nn.Module]


@dataclass(frozen=True)
class Job:
    """What a worker works on.

    Attributes:
        spec: phases and workers.
        config: of the model.
        data: of each phase.
        store: the task's own blobs.
        text: how the model reads and writes.
        base: folder with the model to start from; None: fresh weights.
        base_name: resource name of its complete version.
    """

    spec: TrainingSpec
    config: PreTrainedConfig
    data: list[PhaseData]
    store: BlobStore
    text: BaseText
    base: Path | None = None
    base_name: str = ""


class Worker:
    """Runs a job to its end.

    Args:
        checkpoint: where an earlier attempt got to; None: from the beginning.
    """

    def __init__(self, job: Job, group: Group, reports: Reports, checkpoint: Json | None) -> None:
        self._job = job
        self._group = group
        self._reports = reports
        # The first checkpoint of a task has only the prepared data.
        self._checkpoint = checkpoint if checkpoint and "manifest_digest" in checkpoint else None
        self._progress = read_progress(checkpoint)
        self._writer = CheckpointWriter(job.store, group, reports.checkpoint)
        self._model = starting_model(job.spec, job.config, job.base)
        self._learner = self._new_learner()
        # Of the phase at hand: the blob with what it keeps of its beginning.
        self._kept = ""
        self._weight_of_phases = [
            phase.steps * phase.batch_size * _mean_length(data, job) * METHODS[phase.method].cost
            for phase, data in zip(job.spec.phases, job.data, strict=True)
        ]
        self._recent: deque[tuple[float, float]] = deque(maxlen=50)
        self._asked = (0.0, False)
        self._rates = measure_rates() if group.device.type == "cpu" else {}

    def run(self) -> Json:
        """All phases from where the checkpoint stands.

        Returns:
            `results`, `memory_bytes` (the peaks of all workers), `rates` (see `measure_rates`; none on a GPU),
            `tokens`, `cpu_seconds` and, from the leading worker, `weights` (SHA-256 of the written files by
            path) and the `parameter_count` of these files.

        Raises:
            EngineError: It diverged.
            EngineCancelled: The task was cancelled.
            EnginePaused: It stopped at a checkpoint, as it was asked to.
        """
        try:
            self._run_phases()
            return self._finish()
        finally:
            # Nobody reads a checkpoint that is still being written when this returns.
            self._writer.settle()

    def _run_phases(self) -> None:
        spec, progress = self._job.spec, self._progress
        while progress.phase < len(spec.phases):
            self._run_phase(progress.phase, spec.phases[progress.phase], spec.phase_names[progress.phase])
            name = spec.phase_names[progress.phase]
            progress.phase, progress.step = progress.phase + 1, 0
            self._checkpoint, self._kept = None, ""
            self._writer.write(self._learner, None, progress, name, self._kept)
            if progress.phase < len(spec.phases):
                self._pause_if_asked()

    def _finish(self) -> Json:
        # Writing merges an adapter into its base and takes the model apart: the figures come first.
        figures, job, progress = self._figures(), self._job, self._progress
        files, parameters = {}, 0
        model = self._whole_model()
        if self._group.leads:
            files, parameters = finished_files(job.store, model, job.spec, job.config, job.base, job.base_name)
        self._writer.wait()
        return {
            "results": figures,
            "memory_bytes": int(self._group.sum(float(peak_bytes()))[0]),
            "rates": self._rates,
            "tokens": progress.tokens,
            "cpu_seconds": progress.cpu_seconds,
            "weights": files,
            "parameter_count": parameters,
        }

    def _whole_model(self) -> Model:
        """The model in one piece; of a divided one all workers give their parts, and the leading one gets it."""
        job = self._job
        if isinstance(self._learner, Scorer):
            # A reward model has no adapter, and its head is in the place of the model's own.
            return self._learner
        if not is_sharded(self._learner):
            return self._model
        tensors = whole_weights(self._learner, self._group)
        if self._group.leads:
            self._model = starting_model(job.spec, job.config, job.base)
            load_weights(self._model, tensors)
        return self._model

    def _new_learner(self) -> nn.Module:
        """What the phases teach: the model, with the matrices of an adapter in it if it has one."""
        job, decoder = self._job, bare(self._model)
        learner: nn.Module = decoder
        if self._checkpoint is not None:
            tensors = read_weights(job.store, self._checkpoint)
            if "score.weight" in tensors:
                learner = new_scorer(decoder, job.spec.seed)
            load_weights(learner, tensors)
        place(learner, decoder, job.spec.distribution, self._group)
        return learner

    def _run_phase(self, number: int, phase: Phase, name: str) -> None:
        progress, learning = self._progress, METHODS[phase.method]
        self._tell(f"{name}: making ready")
        work = self._begin(number, phase, learning)
        self._measure(f"{name}.heldout", "before", work)
        self._probe(number, phase, work)
        loop = PhaseLoop(work.objective, phase, number, work.train, self._job.spec.seed, self._group)
        if self._checkpoint is not None and progress.step:
            read_optimiser(self._job.store, self._checkpoint, loop.optimiser)
        recent: deque[Step] = deque(maxlen=_LAST_STEPS)
        window: list[Step] = []
        looks = {rung_step(share, phase.steps) for share in self._job.spec.heldout_at}
        worst = learning.worst_loss(phase, self._job.config.vocab_size)
        for step in loop.run(progress.step, phase.steps, self._should_stop):
            self._count(step, phase, name)
            self._writer.check()
            recent.append(step)
            window.append(step)
            done = progress.step == phase.steps
            since = self._steps_since_due(number)
            due = since == 0 and not done
            # At a checkpoint too: a run that goes on from there reports the same steps as one that was left alone.
            if progress.step % METRICS_EVERY == 0 or due or done:
                check_loss(step.loss, worst, phase, progress.step - 1)
                self._report(name, phase, window)
                window = []
            if progress.step in looks and not done:
                self._look(name, work)
            if due or done:
                progress.results |= {f"{name}.last_{key}": value for key, value in _means(recent).items()}
            if due:
                self._writer.write(self._learner, loop.optimiser, progress, name, self._kept)
                self._pause_if_asked()
            if since == self._job.spec.writing_steps:
                # What is done from here on would be more than may be lost.
                self._writer.wait()
        self._measure(f"{name}.heldout", "after", work)
        results = progress.results
        fell = results[f"{name}.last_loss"] < results[f"{name}.first_loss"]
        if self._group.leads and learning.loss_falls and not fell:
            self._reports.log(f"{name}: the loss did not fall; the learning rate may be wrong", "WARNING")

    def _begin(self, number: int, phase: Phase, learning: Learning) -> Work:
        """The phase as it was when it began, also where an earlier attempt has taken steps of it."""
        job, data = self._job, self._job.data[number]
        resumed = self._checkpoint if self._progress.step else None
        kept = read_kept(job.store, resumed) if resumed is not None else None
        work = learning.begin(
            Start(
                model=self._learner,
                phase=phase,
                number=number,
                seed=job.spec.seed,
                group=self._group,
                train=data.train,
                heldout=data.heldout,
                text=job.text,
                frozen=data.frozen,
                should_stop=self._should_stop,
                kept=kept,
            )
        )
        work.objective.train()
        self._learner = work.objective.model
        if self._group.leads:
            self._kept = write_kept(job.store, work.kept)
        return work

    def _measure(self, prefix: str, when: str, work: Work) -> None:
        """Held-out figures, unless an earlier attempt has them."""
        results = self._progress.results
        known = any(key.startswith(f"{prefix}_") and key.endswith(f"_{when}") for key in results)
        if work.heldout is None or known:
            return
        found = {f"{prefix}_{figure}_{when}": value for figure, value in work.measure().items()}
        results |= found
        if self._group.leads:
            self._reports.log(", ".join(f"{key}: {value:.4f}" for key, value in found.items()))

    def _look(self, name: str, work: Work) -> None:
        """Held-out figures on the way, for the curve. Whoever reads them may want the run to stop: asks at once."""
        if work.heldout is None:
            return
        values = {f"heldout_{figure}": value for figure, value in work.measure().items()}
        if self._group.leads:
            self._reports.metrics(name, self._progress.step, values)
            self._asked = (0.0, False)

    def _probe(self, number: int, phase: Phase, work: Work) -> None:
        if self._job.spec.adapter is not None or is_sharded(self._learner):
            # Fresh weights under an adapter would be frozen: there is nothing to compare with. Divided ones have no
            # copy.
            return
        results, phases = self._progress.results, self._job.spec.phases
        first = (
            self._job.spec.probe
            and number > 0
            and phase.method is Method.SFT
            and phases[number - 1].method is Method.PRETRAIN
        )
        if first and "probe.steps" not in results and self._progress.step == 0:
            results |= pretraining_effect(work, phase, number, self._job.spec.seed, self._group, self._should_stop)

    def _count(self, step: Step, phase: Phase, name: str) -> None:
        progress = self._progress
        progress.step += 1
        progress.tokens += step.tokens
        progress.cpu_seconds += step.cpu_seconds
        progress.train_seconds += step.seconds
        results = progress.results
        results.setdefault(f"{name}.first_loss", step.loss)
        results[f"{name}.tokens"] = results.get(f"{name}.tokens", 0.0) + step.tokens
        results[f"{name}.seconds"] = results.get(f"{name}.seconds", 0.0) + step.seconds

    def _report(self, name: str, phase: Phase, window: list[Step]) -> None:
        if not self._group.leads:
            return
        progress = self._progress
        seconds = sum(step.seconds for step in window)
        fraction = self._fraction()
        self._recent.append((fraction, progress.train_seconds))
        values = {
            **_means(window),
            "learning_rate": window[-1].learning_rate,
            "tokens_per_second": sum(step.tokens for step in window) / max(seconds, 1e-9),
            "gradient_norm": sum(step.gradient_norm for step in window) / len(window),
            **self._usage(window, seconds),
        }
        eta = self._eta_seconds()
        if eta is not None:
            values["eta_seconds"] = eta
        self._reports.metrics(name, progress.step, values)
        self._tell(f"{name}: step {progress.step} of {phase.steps}, loss {values['loss']:.3f}")

    def _tell(self, message: str) -> None:
        """What the run is doing now, from the leading worker."""
        progress = self._progress
        if self._group.leads:
            cost = {"tokens": float(progress.tokens), "cpu_seconds": progress.cpu_seconds}
            self._reports.progress(self._fraction(), message, cost)

    def _usage(self, window: list[Step], seconds: float) -> dict[str, float]:
        """What the machine gave: the share of the booked CPU threads that was busy, memory of this worker in bytes."""
        device = self._group.device
        threads = self._group.world * max(1, self._job.spec.threads_per_worker)
        usage = {
            "cpu_share": sum(step.cpu_seconds for step in window) / max(seconds * threads, 1e-9),
            "resident_bytes": float(psutil.Process().memory_info().rss),
        }
        return usage | ({"gpu_bytes": float(torch.cuda.memory_reserved(device))} if device.type == "cuda" else {})

    def _fraction(self) -> float:
        """How much of the work is done; a step of a phase counts as much as its tokens cost."""
        progress, phases = self._progress, self._job.spec.phases
        done = sum(self._weight_of_phases[: progress.phase])
        done += self._weight_of_phases[progress.phase] * progress.step / phases[progress.phase].steps
        return done / sum(self._weight_of_phases)

    def _eta_seconds(self) -> float | None:
        (fraction, seconds), (last_fraction, last_seconds) = self._recent[0], self._recent[-1]
        if last_fraction <= fraction:
            return None
        return (1 - last_fraction) * (last_seconds - seconds) / (last_fraction - fraction)

    def _steps_since_due(self, number: int) -> int:
        """Steps since a checkpoint was due; they are counted over all phases."""
        spec = self._job.spec
        done = sum(phase.steps for phase in spec.phases[:number]) + self._progress.step
        return done % spec.checkpoint_period

    def _pause_if_asked(self) -> None:
        """Stops behind a checkpoint; the leading worker asks, and all stop at the same step."""
        if self._group.sum(float(self._group.leads and self._reports.pausing()))[0]:
            self._writer.wait()
            raise EnginePaused()

    def _should_stop(self) -> bool:
        """Whether the task was cancelled; asked by the leading worker now and then."""
        if not self._group.leads:
            return False
        asked, answer = self._asked
        if not answer and time.monotonic() - asked >= ASK_SECONDS:
            self._asked = (time.monotonic(), self._reports.cancelled())
        return self._asked[1]

    def _figures(self) -> dict[str, float]:
        """The results with totals and rates."""
        progress, results = self._progress, dict(self._progress.results)
        for name in self._job.spec.phase_names:
            seconds = results.pop(f"{name}.seconds", 0.0)
            results[f"{name}.tokens_per_second"] = results.get(f"{name}.tokens", 0.0) / max(seconds, 1e-9)
        results["tokens"] = float(progress.tokens)
        results["tokens_per_second"] = progress.tokens / max(progress.train_seconds, 1e-9)
        results["cpu_seconds"] = progress.cpu_seconds
        results["train_seconds"] = progress.train_seconds
        trained = trained_weights(self._learner)
        results["trained_parameters"] = float(sum(tensor.numel() for tensor in trained.values()))
        return results


def _means(steps: Collection[Step]) -> dict[str, float]:
    """Mean loss and mean figures of steps."""
    totals: dict[str, float] = {}
    for step in steps:
        for name, value in {"loss": step.loss, **step.figures}.items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: value / len(steps) for name, value in totals.items()}


def _mean_length(data: PhaseData, job: Job) -> float:
    lengths: Any = data.train.lengths
    return float(lengths.mean()) if lengths is not None else float(sequence_length(job.spec, job.config))
