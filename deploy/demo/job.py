"""The main job: ten stages, each through the gateway as any client would do it.

Every run makes resources of its own, under names that end in the run's id, so that a second run works as well as the
first. Calls are repeated while a part of the platform is away; long work is followed until it has ended, whoever was
killed meanwhile.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from argosy.cli.live import finished_evaluation, watch
from argosy.client import Client, FailedPrecondition, Forbidden
from argosy.client.errors import Conflict

from deploy.demo import asking, corpus, watching
from deploy.demo.access import ORG, POLICY, Keys, people
from deploy.demo.scale import PROMPT, Scale
from deploy.demo.screen import Screen
from deploy.local import mesh
from deploy.local.layout import Home, Ports

STAGES = 10
Summary = dict[str, Any]
# Docstrings are short and full of code; so the limits are looser than those of web pages.
_RECIPE = """
description: Docstrings
steps:
  - html
  - normalise
  - length: {min_chars: 40, max_chars: 20000}
  - words: {min_words: 6}
  - letters: {min_share: 0.5}
  - repeated_line: {max_share: 0.3}
  - symbols: {max_per_word: 0.1}
  - exact_duplicates
  - near_duplicates: {threshold: 0.8}
"""


@dataclass
class Job:
    """One run of the main job.

    Args:
        home: data folder of the mesh.
        folder: where the corpus and the summary go.
        scale: how much of everything.
        screen: what is shown.
    """

    home: Home
    folder: Path
    scale: Scale
    screen: Screen
    summary: Summary = field(default_factory=dict)

    def run(self) -> Summary:
        """Does all stages.

        Raises:
            ApiError: the platform refused something that it should not, or stayed away for minutes.
            TaskFailed: long work failed.
            AssertionError: a result is not what the stage promises.
        """
        self.run_id = f"r{secrets.token_hex(3)}"
        self.summary["run"] = self.run_id
        with self.screen.stage("start PostgreSQL, NATS, Ray and the services"):
            self._start()
        with self.screen.stage("create an organization, users and keys"):
            self._people()
        with (
            Client(self.url, self.keys.alice, POLICY) as self.alice,
            Client(self.url, self.keys.bob, POLICY) as self.bob,
        ):
            with self.screen.stage("collect the documentation of this Python environment and import it"):
                self._import()
            with self.screen.stage("clean on Ray"):
                self._clean()
            with self.screen.stage("split by source file"):
                self._split()
            with self.screen.stage("train with Ray Train on two workers"):
                self._train()
            with self.screen.stage("evaluate on the held-out rows, decide the gate"):
                self._evaluate()
            with self.screen.stage("order, approve and roll out"):
                self._deploy()
            with self.screen.stage("ask it: openai client, curl, application"):
                self._ask()
            with self.screen.stage("read back traces, logs and figures"):
                self._watch()
        self.summary["seconds"] = {**self.screen.seconds, "all": round(self.screen.elapsed, 2)}
        return self.summary

    def _start(self) -> None:
        ports = self.home.ports() or Ports()
        seconds = mesh.up(self.home, ports, self.screen.tell)
        self.url = f"http://127.0.0.1:{ports.http}"
        self.summary["ready_seconds"] = round(seconds, 2)
        self.screen.say(f"all ready in {seconds:.1f} s at {self.url}")

    def _people(self) -> None:
        self.keys: Keys
        self.keys, known = people(self.url, self.home.root)
        what = "known from an earlier run" if known else "made from the one-time bootstrap token"
        self.screen.say(f"{ORG}, users alice (editor) and bob (approver): {what}")

    def _import(self) -> None:
        scale = self.scale
        with self.screen.bar("reading docstrings", scale.rows) as show:
            found = corpus.build(self.folder, scale.rows, scale.packages, show, scale.only)
        self.labels = found.labels
        self.screen.say(f"{found.rows:,} rows of {found.files:,} files, SHA-256 {found.digest[:16]}...")
        self.summary["corpus"] = {
            "digest": found.digest,
            "rows": found.rows,
            "files": found.files,
            "packages": [{"name": name, "version": version, "rows": rows} for name, version, rows in found.packages],
        }
        self.dataset = self._dataset("docs")
        path = Path(found.path)
        with self.screen.bar("uploading", path.stat().st_size) as show:
            upload = self.alice.upload(ORG, path, upload_id=f"docs-{self.run_id}", progress=show)
        task = self.alice.dataset.import_version(parent=self.dataset, upload=upload.name, format="jsonl")
        self._finish(task.name, "importing")
        self.version, version = self._newest(self.dataset)
        self.summary["imported"] = {
            "rows": version.row_count,
            "bytes": version.byte_count,
            "line_errors": version.report.line_error_count,
            "digest": version.content_digest,
        }
        self.screen.say(
            f"{version.row_count:,} rows imported, {version.report.line_error_count} lines could not be read"
        )
        assert version.row_count > 0, "nothing was imported"

    def _dataset(self, kind: str) -> str:
        made = self.alice.dataset.create_dataset(
            parent=ORG,
            dataset_id=f"{kind}-{self.run_id}",
            dataset={
                "type": "DATASET_TYPE_TEXT",
                "display_name": f"{kind} of run {self.run_id}",
                "source": "docstrings of the installed Python packages",
            },
        )
        return str(made.name)

    def _newest(self, dataset: str) -> tuple[str, Any]:
        name = self.alice.dataset.get_dataset(name=dataset).latest_version
        return name, self.alice.dataset.get_dataset_version(name=name)

    def _finish(self, task: str, label: str, curve: list[Any] | None = None) -> Any:
        return watch(self.alice, task, self.screen.console, label, curve)

    def _clean(self) -> None:
        task = self.alice.dataset.clean_version(name=self.version, recipe=_RECIPE)
        self._finish(task.name, "cleaning")
        self.version, version = self._newest(self.dataset)
        report = version.report
        dropped = {rule.rule: rule.dropped for rule in report.rules if rule.dropped}
        self.summary["cleaned"] = {
            "rows_in": report.rows_in,
            "kept": report.rows_out,
            "digest": version.content_digest,
            "dropped": dropped,
            "changed": dict(report.changed),
            "examples": {
                rule.rule: {"text": rule.examples[0].text[:200], "reason": rule.examples[0].reason}
                for rule in report.rules
                if rule.examples
            },
        }
        self.screen.say(f"{report.rows_in:,} rows in, {report.rows_out:,} kept; dropped by rule:")
        for rule in report.rules:
            if rule.dropped:
                example = " ".join(rule.examples[0].text.split())[:70] if rule.examples else ""
                self.screen.tell(f"  {rule.rule:<24} {rule.dropped:>7,}   {example}")
        assert report.rows_in == report.rows_out + sum(dropped.values()), "the report does not add up"

    def _split(self) -> None:
        train, test = self._dataset("train"), self._dataset("test")
        task = self.alice.dataset.split_version(
            name=self.version,
            train_dataset=train,
            test_dataset=test,
            group_column="source",
            test_fraction=self.scale.test_fraction,
            # What the gate compares: rows that are alike in it are taken out of the training side.
            text_column=self.scale.asked,
            near_duplicate_threshold=0.6,
            seed=7,
        )
        self._finish(task.name, "splitting")
        self.train, trained = self._newest(train)
        self.test, tested = self._newest(test)
        leakage = trained.report.leakage_count
        self.summary["split"] = {
            "train_rows": trained.row_count,
            "train_digest": trained.content_digest,
            "test_rows": tested.row_count,
            "test_digest": tested.content_digest,
            "leakage": leakage,
        }
        self.screen.say(
            f"{trained.row_count:,} rows to learn from, {tested.row_count:,} held out; "
            f"{leakage:,} near-duplicates across the split were taken out of the training side"
        )

    def _train(self) -> None:
        scale = self.scale
        self.project = f"{ORG}/modelProjects/package-teller-{self.run_id}"
        self.alice.training.create_model_project(
            parent=ORG,
            model_project_id=self.project.split("/")[-1],
            model_project={"display_name": "Tells which package a docstring belongs to"},
        )
        tune = {
            "method": "METHOD_SFT",
            "prompt_template": PROMPT,
            "text_column": scale.asked,
            "answer_column": "package",
            "answers": self.labels,
        }
        self.screen.say("beside it a first try, tuned for a few steps, to show what a gate is for")
        first = {**scale.tune, **tune, "steps": scale.first_try}
        phases = [{**scale.pretrain, "method": "METHOD_PRETRAIN"}, {**scale.tune, **tune}]
        # Both at once: most of what a run of a few steps needs is the start of its worker.
        attempt = self._start_training("first-try", [first], workers=1)
        run = self._start_training("full", phases, workers=2)
        curve: list[Any] = []
        self.first_try = self._trained(attempt, "training first-try").model_version
        run = self._trained(run, "training full", curve)
        self.model = run.model_version
        results = dict(run.results)
        self.summary["training"] = {
            "model_version": self.model,
            "model_digest": self.alice.training.get_model_version(name=self.model).manifest_digest,
            "results": results,
            "first_loss": results.get("pretrain.first_loss", results.get("first_loss")),
            "last_loss": results.get("sft.last_loss", results.get("last_loss")),
            "tokens_per_second": results.get("tokens_per_second"),
            "curve_points": len(curve),
            "framework": dict(run.framework),
        }
        for name in sorted(results):
            self.screen.tell(f"  {name:<36} {results[name]:,.3f}")

    def _start_training(self, name: str, phases: list[dict[str, Any]], workers: int) -> Any:
        training = self.alice.training.create_training(
            parent=ORG,
            training_id=f"{name}-{self.run_id}",
            training={
                "dataset_version": self.train,
                "validation_version": self.test,
                "model_project": self.project,
                "spec": {
                    "phases": phases,
                    "architecture": self.scale.architecture,
                    "workers": workers,
                    "threads_per_worker": 1,
                    "seed": 7,
                },
            },
        )
        return self.alice.training.run_training(name=training.name, run_id="run1")

    def _trained(self, run: Any, label: str, curve: list[Any] | None = None) -> Any:
        self._finish(run.task, label, curve)
        return self.alice.training.get_training_run(name=run.name)

    def _evaluate(self) -> None:
        few, many = min(200, self.scale.max_rows), self.scale.max_rows
        # Both at once: each needs a replica, whose start keeps one CPU busy.
        attempt = self._start_evaluation("first-try", self.first_try, few, masked=False, margin=0.5)
        full = self._start_evaluation("full", self.model, many, masked=True, margin=self.scale.margin)
        tried = self._evaluated(attempt, "evaluating first-try")
        found = self._evaluated(full, "evaluating full")
        report = found.report
        rows = [("model", report.score), ("model, package names masked", report.masked_score)]
        rows += [(name.replace("_", " "), score) for name, score in sorted(report.baselines.items())]
        for name, score in rows:
            if score.total:
                self.screen.tell(f"  {name:<28} {score.value:.3f}   95 % {score.lower:.3f} to {score.upper:.3f}")
        self.screen.tell(
            f"  gate {report.verdict.gate}: {'open' if report.verdict.open else 'shut'}. {report.verdict.rule}"
        )
        self.summary["evaluation"] = {
            "name": found.name,
            "rows": report.rows,
            "score": _score(report.score),
            "masked_score": _score(report.masked_score),
            "baselines": {name: _score(score) for name, score in report.baselines.items()},
            "gate": _verdict(report.verdict),
            "rows_per_second": report.rows_per_second,
            "samples_digest": report.samples_digest,
            "first_try": {"score": _score(tried.report.score), "gate": _verdict(tried.report.verdict)},
        }
        assert report.verdict.open, f"the gate stayed shut: {report.verdict.reason}"
        assert not tried.report.verdict.open, "the gate opened for the first try"

    def _start_evaluation(self, name: str, model: str, rows: int, *, masked: bool, margin: float) -> Any:
        return self.alice.eval.create_evaluation(
            parent=ORG,
            evaluation_id=f"{name}-{self.run_id}",
            evaluation={
                "model_version": model,
                "dataset_version": self.test,
                "baseline_version": self.train if masked else "",
                "spec": {
                    "prompt_template": PROMPT,
                    "text_column": self.scale.asked,
                    "answer_column": "package",
                    "answers": self.labels,
                    "masked_words": self.labels if masked else [],
                    "max_rows": rows,
                    "max_tokens": 8,
                    "gate": "release",
                    "gate_margin": margin,
                    "seed": 7,
                },
            },
        )

    def _evaluated(self, evaluation: Any, label: str) -> Any:
        self._finish(evaluation.task, label)
        return finished_evaluation(self.alice, evaluation.name)

    def _deploy(self) -> None:
        config = self.alice.deploy.create_deployment_config(
            parent=ORG,
            deployment_config_id=f"small-{self.run_id}",
            deployment_config={"spec": {"runtime": "vllm", "replicas": 1, "cpus": 0.5, "max_concurrency": 32}},
        )
        self.deployment_id = f"package-teller-{self.run_id}"
        refusal = self._refused(config.name)
        with self.alice.trace() as self.order_trace:
            order = self._order(config.name, self.model, "The gate is open.")
        self_approval = self._own_approval(order.name)
        with self.bob.trace() as self.approval_trace:
            decided = self.bob.deploy.approve_work_order(name=order.name, reason="The evaluation convinces me.")
        self.screen.say(f"work order by alice, approved by {decided.decider}")
        watch(self.bob, decided.task, self.screen.console, "rolling out")
        order = self.alice.deploy.get_work_order(name=order.name)
        deployment = self.alice.deploy.get_deployment(name=order.deployment)
        state = type(deployment).State.Name(deployment.state)
        self.summary["deployment"] = {
            "name": deployment.name,
            "state": state.removeprefix("STATE_"),
            "work_order": order.name,
            "decider": order.decider,
            "evidence": {"evaluation": order.evidence_evaluation, "rule": order.evidence_rule},
            "spec": {"runtime": order.spec.runtime, "replicas": order.spec.replicas, "cpus": order.spec.cpus},
            "refusal": refusal,
            "self_approval": self_approval,
        }
        self.screen.say(f"{deployment.name} is {state.removeprefix('STATE_').lower()}")
        assert state == "STATE_LIVE", f"the deployment is {state}"
        self._stop_earlier(deployment.name)

    def _stop_earlier(self, kept: str) -> None:
        """Takes down what earlier runs on this data folder left running: each holds a gigabyte of memory."""
        for deployment in self.bob.deploy.list_deployments(parent=ORG, page_size=1000).deployments:
            of_a_run = deployment.name.startswith(f"{ORG}/deployments/package-teller-r")
            state = type(deployment).State.Name(deployment.state)
            if of_a_run and deployment.name != kept and state not in ("STATE_STOPPED", "STATE_FAILED"):
                self.bob.deploy.stop_deployment(name=deployment.name)
                self.screen.tell(f"stopped {deployment.name} of an earlier run")

    def _order(self, config: str, model: str, why: str) -> Any:
        return self.alice.deploy.create_work_order(
            parent=ORG,
            work_order={
                "deployment_config": config,
                "model_version": model,
                "deployment_id": self.deployment_id,
                "justification": why,
            },
        )

    def _refused(self, config: str) -> dict[str, Any]:
        """A work order for the version whose gate is shut."""
        try:
            self._order(config, self.first_try, "Let us try the first one.")
        except FailedPrecondition as error:
            self.screen.tell(f"the first try was refused: {error.reason}: {error.message}")
            return {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        raise AssertionError("a work order for a version whose gate is shut was accepted")

    def _own_approval(self, order: str) -> str:
        try:
            self.alice.deploy.approve_work_order(name=order)
        except Forbidden as error:
            self.screen.tell(f"alice cannot approve it herself: {error.reason}")
            return error.reason
        raise AssertionError("alice approved her own work order")

    def _ask(self) -> None:
        text, wanted = self._question()
        self.screen.tell(f"question: {' '.join(text.split())[:90]}...   (from {wanted})")
        by_openai = asking.with_openai(self.url, self.keys.alice, self.deployment_id, text)
        by_curl = asking.with_curl(self.url, self.keys.alice, self.deployment_id, text)
        self.application = self._publish()
        model = f"app:{self.application}"
        by_app = asking.with_openai(self.url, self.keys.alice, model, text)
        self.answer_trace = by_app.trace_id
        for who, answer in (("openai client", by_openai), ("curl", by_curl), (model, by_app)):
            first = (
                f", first token after {answer.first_token_seconds * 1000:.0f} ms" if answer.first_token_seconds else ""
            )
            self.screen.tell(f"  {who:<34} {answer.text!r}{first}")
        self.summary["answers"] = {
            "question": text,
            "expected": wanted,
            "answer": by_openai.text,
            "time_to_first_token_seconds": by_openai.first_token_seconds,
            "curl": by_curl.text,
            "application": {"model": model, "answer": by_app.text, "first_token_seconds": by_app.first_token_seconds},
            "usage": by_openai.usage,
        }
        assert by_openai.text, "the deployment gave no answer"
        assert by_app.text, "the application gave no answer"

    def _question(self) -> tuple[str, str]:
        """A held-out row that is short enough to read."""
        page = self.alice.dataset.preview_rows(parent=self.test, page_size=200)
        rows = [dict(row.fields) for row in page.rows]
        known = [row for row in rows if row["package"] in self.labels]
        fitting = [row for row in known if 80 <= len(row["text"]) <= 300]
        row = (fitting or known or rows)[0]
        return str(row[self.scale.asked]), str(row["package"])

    def _publish(self) -> str:
        name = f"package-teller-{self.run_id}"
        self.alice.app.create_prompt(parent=ORG, prompt_id=name, prompt={"display_name": "Which package?"})
        version = self.alice.app.create_prompt_version(
            parent=f"{ORG}/prompts/{name}",
            prompt_version={"template": PROMPT.replace("{text}", "{input}"), "raw": True, "max_tokens": 8},
        )
        application = {"prompt_version": version.name, "deployment": f"{ORG}/deployments/{self.deployment_id}"}
        with suppress(Conflict):
            self.alice.app.create_application(parent=ORG, application_id=name, application=application)
        published = self.alice.app.publish_application(name=f"{ORG}/applications/{name}")
        self.screen.say(f"published {published.name} with prompt {version.name.split('/')[-1]}")
        return name

    def _watch(self) -> None:
        seen: Summary = {}
        wanted = {
            "answer": (self.answer_trace, {"gateway", "app", "replica"}, {"gateway", "app", "replica"}),
            "work_order": (self.order_trace, {"gateway", "deploy", "training"}, {"gateway", "deploy"}),
            # The replica is a Ray actor: its start there is part of the trace.
            "roll_out": (self.approval_trace, {"gateway", "deploy", "training", "replica"}, {"gateway", "deploy"}),
        }
        for name, (trace_id, services, speakers) in wanted.items():
            seen[name] = watching.trace(self.alice, self.screen, name, trace_id, services, speakers)
        with Client(self.url, self.keys.admin, POLICY) as admin:
            self.summary["services"] = watching.services(admin, self.screen)
        self.summary["traces"] = seen
        missing = {name: data["missing"] for name, data in seen.items() if data["missing"]}
        assert not missing, f"services are missing in a trace: {missing}"
        assert seen["roll_out"]["ray_actors"], "no span of the roll-out says that it ran on Ray"


def _score(score: Any) -> dict[str, float]:
    return {"value": score.value, "lower": score.lower, "upper": score.upper, "total": score.total}


def _verdict(verdict: Any) -> dict[str, Any]:
    return {"gate": verdict.gate, "open": verdict.open, "rule": verdict.rule, "reason": verdict.reason}
