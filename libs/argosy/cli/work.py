"""Verbs that people need along the main job beside those of datasets: train, evaluate, deploy, publish."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.curves import curves, line
from argosy.cli.dataset import dataset
from argosy.cli.leaderboard import leaderboard
from argosy.cli.live import finished_evaluation, watch
from argosy.cli.models import import_model
from argosy.cli.options import PATIENCE, JsonOption, WatchOption, newest
from argosy.cli.preflight import preflight
from argosy.cli.tensorboard import import_events, tensorboard
from argosy.cli.trainings import apply, export, push
from argosy.client import Client, contract
from argosy.client.errors import Conflict
from rich.table import Table

_MODEL = "orgs/*/modelProjects/*/versions/*"

training = typer.Typer(help="Trainings and their runs.", no_args_is_help=True)
algorithm = typer.Typer(help="The algorithm catalogue, and own code.", no_args_is_help=True)
task = typer.Typer(help="Long work of every service.", no_args_is_help=True)
model = typer.Typer(help="Model versions and their gates.", no_args_is_help=True)
evaluation = typer.Typer(help="Evaluations and gates.", no_args_is_help=True)
deploy = typer.Typer(help="Work orders and deployments.", no_args_is_help=True)
application = typer.Typer(help="Applications.", no_args_is_help=True)

training.command("curves")(curves)
training.command("preflight")(preflight)
training.command("apply")(apply)
training.command("export")(export)
algorithm.command("push")(push)
training.command("leaderboard")(leaderboard)
training.command("tensorboard")(tensorboard)
training.command("import-events")(import_events)


@training.command("run")
def run_training(
    name: Annotated[str, typer.Argument(help="Training.")],
    follow: Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Show loss, tokens/s and ETA.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Start a run of a training."""
    with session.session(PATIENCE) as client:
        run = client.training.run_training(name=session.full_name(name, "orgs/*/trainings/*"))
        if follow:
            curve: list[Any] = []
            watch(client, run.task, session.errors_console if as_json else session.console, "training", curve)
            run = client.training.get_training_run(name=run.name)
            if not as_json:
                _curve(curve)
        session.show(run, as_json)
        if run.model_version and not as_json:
            session.console.print(f"model version: {session.short_name(run.model_version)}")


def _curve(metrics: list[Any]) -> None:
    """The loss over the steps as a line of blocks, a phase a line."""
    phases: dict[str, list[float]] = {}
    for point in metrics:
        if "loss" in point.values:
            phases.setdefault(point.phase, []).append(point.values["loss"])
    for phase, losses in phases.items():
        drawn = line(losses[:: max(1, len(losses) // 60)])
        session.console.print(f"{phase:<10} {losses[0]:.3f} {drawn} {losses[-1]:.3f}")


@task.command("watch")
def watch_task(name: Annotated[str, typer.Argument(help="orgs/ID/AREA/tasks/ID")], as_json: JsonOption = False) -> None:
    """Follow a task to its end. Exit code 3 when it fails."""
    with session.session(PATIENCE) as client:
        console = session.errors_console if as_json else session.console
        session.show(watch(client, _task_name(name), console), as_json)


@task.command("logs")
def task_logs(name: Annotated[str, typer.Argument(help="orgs/ID/AREA/tasks/ID")], as_json: JsonOption = False) -> None:
    """Print the log of a task."""
    with session.session() as client:
        method = contract.areas()["task"]["list_task_logs"]
        logs = client.pages(method, {"parent": _task_name(name), "page_size": 1000})
        session.show_list(logs, as_json, ("time", "severity", "body"))


def _task_name(given: str) -> str:
    if given.startswith("orgs/"):
        return given
    area, _, ident = given.partition("/")
    return f"{session.organization()}/{area}/tasks/{ident}"


@model.command("list")
def list_models(
    project: Annotated[str | None, typer.Argument(help="Model project; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List model versions, newest first."""
    from argosy.client import contract

    with session.session() as client:
        methods = contract.areas()["training"]
        if project:
            projects = [session.full_name(project, "orgs/*/modelProjects/*")]
        else:
            found = client.pages(methods["list_model_projects"], {"parent": session.organization()})
            projects = [item.name for item in found]
        versions = [
            version for name in projects for version in client.pages(methods["list_model_versions"], {"parent": name})
        ]
        columns = ("name", "stage", "state", "architecture", "parameter_count", "training_run", "create_time")
        session.show_list(versions, as_json, columns)


model.command("import")(import_model)


@model.command("show")
def show_model(name: Annotated[str, typer.Argument(help="PROJECT/VERSION")], as_json: JsonOption = False) -> None:
    """Show a model version with its gates and its card."""
    with session.session() as client:
        version = client.training.get_model_version(name=session.full_name(name, _MODEL))
        if as_json:
            session.show(version, True)
            return
        session.show({k: v for k, v in session.plain(version).items() if k not in ("model_card", "gates")}, False)
        for gate in version.gates:
            state = "[green]open[/green]" if gate.open else "[red]shut[/red]"
            session.console.print(f"gate {gate.gate}: {state}  {gate.rule}  {gate.reason}")
        if version.model_card:
            from rich.markdown import Markdown

            session.console.print(Markdown(version.model_card))


@evaluation.command("run")
def run_evaluation(
    model_version: Annotated[str, typer.Option("--model", "-m", help="PROJECT/VERSION")],
    data: Annotated[str, typer.Option("--dataset", "-d", help="Held-out rows: DATASET or DATASET/VERSION.")],
    baseline: Annotated[str | None, typer.Option(help="Rows that the model learned from, for the baselines.")] = None,
    template: Annotated[str, typer.Option(help="Prompt around the input, with {text}.")] = "{text}",
    text_column: str = "text",
    answer_column: str = "label",
    max_rows: int = 0,
    gate: Annotated[str, typer.Option(help="Gate to decide; empty: none.")] = "",
    margin: Annotated[float, typer.Option(help="By which the lower bound must beat the majority class.")] = 0.05,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Measure a model version on held-out rows, and decide a gate by it."""
    with session.session(PATIENCE) as client:
        started = client.eval.create_evaluation(
            parent=session.organization(),
            evaluation={
                "model_version": session.full_name(model_version, _MODEL),
                "dataset_version": newest(client, data),
                "baseline_version": newest(client, baseline) if baseline else "",
                "spec": {
                    "prompt_template": template,
                    "text_column": text_column,
                    "answer_column": answer_column,
                    "max_rows": max_rows,
                    "gate": gate,
                    "gate_margin": margin,
                },
            },
        )
        if follow:
            watch(client, started.task, session.errors_console if as_json else session.console, "evaluation")
            started = finished_evaluation(client, started.name)
        if as_json or not follow:
            session.show(started, as_json)
        else:
            _scores(started)


def _scores(found: Any) -> None:
    report = found.report
    table = Table(title=f"{session.short_name(found.name)}: {report.rows:,} rows")
    for column in ("", "exact match", "95 % interval"):
        table.add_column(column)
    rows = [("model", report.score), ("model, words masked", report.masked_score)]
    rows += [(name.replace("_", " "), score) for name, score in sorted(report.baselines.items())]
    for name, score in rows:
        if score.total:
            table.add_row(name, f"{score.value:.3f}", f"{score.lower:.3f} to {score.upper:.3f}")
    session.console.print(table)
    if report.verdict.gate:
        state = "open" if report.verdict.open else "shut"
        session.console.print(f"gate {report.verdict.gate}: {state}. {report.verdict.rule} {report.verdict.reason}")


@deploy.command()
def order(
    model_version: Annotated[str, typer.Option("--model", "-m", help="PROJECT/VERSION")],
    config: Annotated[str, typer.Option("--config", "-c", help="Deployment configuration; made if there is none.")],
    deployment: Annotated[
        str, typer.Option("--deployment", help="Id of the deployment: the model's name at the door.")
    ],
    why: Annotated[str, typer.Option(help="Justification.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask for a model version to be deployed. A second person approves it."""
    with session.session() as client:
        name = session.full_name(config, "orgs/*/deploymentConfigs/*")
        with suppress(Conflict):
            client.deploy.create_deployment_config(
                parent=session.organization(),
                deployment_config_id=name.split("/")[-1],
                deployment_config={"spec": {"runtime": "vllm"}},
            )
        made = client.deploy.create_work_order(
            parent=session.organization(),
            work_order={
                "deployment_config": name,
                "model_version": session.full_name(model_version, _MODEL),
                "deployment_id": deployment,
                "justification": why,
            },
        )
        session.show(made, as_json)
        if not as_json:
            short = session.short_name(made.name)
            session.console.print(f"somebody else approves it: argosy deploy approve {short}")


@deploy.command()
def approve(
    name: Annotated[str, typer.Argument(help="Work order.")],
    reason: str = "",
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Approve somebody else's work order; its roll-out begins."""
    with session.session(PATIENCE) as client:
        full = session.full_name(name, "orgs/*/workOrders/*")
        made = client.deploy.approve_work_order(name=full, reason=reason)
        if follow and made.task:
            watch(client, made.task, session.errors_console if as_json else session.console, "roll-out")
            made = client.deploy.get_work_order(name=full)
        session.show(made, as_json)


@deploy.command()
def reject(
    name: Annotated[str, typer.Argument(help="Work order.")], reason: str = "", as_json: JsonOption = False
) -> None:
    """Reject a work order."""
    with session.session() as client:
        full = session.full_name(name, "orgs/*/workOrders/*")
        session.show(client.deploy.reject_work_order(name=full, reason=reason), as_json)


@deploy.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Deployment; else all.")] = None, as_json: JsonOption = False
) -> None:
    """Show deployments: state, version, replicas."""
    with session.session() as client:
        if name:
            session.show(client.deploy.get_deployment(name=session.full_name(name, "orgs/*/deployments/*")), as_json)
            return
        found = client.deploy.list_deployments(parent=session.organization(), page_size=1000).deployments
        session.show_list(found, as_json, ("name", "state", "model_version", "ready_replicas", "live_time"))


@deploy.command()
def stop(name: Annotated[str, typer.Argument(help="Deployment.")], as_json: JsonOption = False) -> None:
    """Take the replicas of a deployment away."""
    with session.session() as client:
        session.show(client.deploy.stop_deployment(name=session.full_name(name, "orgs/*/deployments/*")), as_json)


@application.command()
def publish(
    name: Annotated[
        str, typer.Argument(help="Application; made if there is none and --prompt and --deployment are given.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Template of a new prompt version, with {input}.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Deployment that answers.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an application as it stands now the version that callers get as `app:ID`."""
    with session.session() as client:
        full = session.full_name(name, "orgs/*/applications/*")
        if prompt or deployment:
            _prepare(client, full, prompt, deployment)
        session.show(client.app.publish_application(name=full), as_json)


def _prepare(client: Client, full: str, prompt: str | None, deployment: str | None) -> None:
    org, ident = session.organization(), full.split("/")[-1]
    wanted: dict[str, str] = {}
    if prompt:
        with suppress(Conflict):
            client.app.create_prompt(parent=org, prompt_id=ident, prompt={})
        version = client.app.create_prompt_version(
            parent=f"{org}/prompts/{ident}", prompt_version={"template": prompt, "raw": True}
        )
        wanted["prompt_version"] = version.name
    if deployment:
        wanted["deployment"] = session.full_name(deployment, "orgs/*/deployments/*")
    try:
        client.app.create_application(parent=org, application_id=ident, application=wanted)
    except Conflict:
        client.app.update_application(application={"name": full, **wanted}, update_mask=list(wanted))


def mount(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the commands; gives them by noun."""
    nouns = {
        "dataset": dataset,
        "training": training,
        "algorithm": algorithm,
        "task": task,
        "model": model,
        "eval": evaluation,
        "deploy": deploy,
        "app": application,
    }
    for noun, commands in nouns.items():
        app.add_typer(commands, name=noun, rich_help_panel="The main job")
    return nouns
