"""The annotation model: detectors, what a request asks for, and boxes for it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.options import PATIENCE, JsonOption, WatchOption, follow_task, newest, upload_file
from argosy.cli.reports import follow_to_report
from argosy.client import Client

_DETECTOR = "orgs/*/detectors/*"

detector = typer.Typer(help="What finds boxes in images for words.", no_args_is_help=True)

RequestArgument = Annotated[str, typer.Argument(help="What is to be marked, in Chinese or English.")]
DeploymentOption = Annotated[str, typer.Option(help="Deployment of a language model that reads the request.")]
UriOption = Annotated[
    str, typer.Option("--model-uri", help="Or any with OpenAI's interface: https://llm.example.com/v1")
]
ModelOption = Annotated[str, typer.Option("--model", help="What the model is called there.")]
SecretOption = Annotated[str, typer.Option("--model-secret", help="Secret with the key of that interface.")]


class WeightsKind(enum.StrEnum):
    """Detectors that come with their weights."""

    yolo_world = "yolo-world"
    grounding_dino = "grounding-dino"


@detector.command()
def train(
    name: Annotated[str, typer.Argument(help="Id of the detector.")],
    steps: Annotated[int, typer.Option(min=0, help="Of training; 0: as many as it takes.")] = 0,
    seed: int = 0,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train Argosy's own detector on drawn scenes: it finds drawn shapes by colour and shape, and needs no weights."""
    with session.session(PATIENCE) as client:
        made = {"kind": "DETECTOR_KIND_BUILT_IN"}
        _create(client, name, made, follow, as_json, training_steps=steps, seed=seed)


@detector.command("import")
def import_weights(
    name: Annotated[str, typer.Argument(help="Id of the detector.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A zip with the weights.")],
    kind: Annotated[WeightsKind, typer.Option(help="What they are.")],
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Try the weights of a detector and keep them: model.onnx of YOLO-World, or a folder of Grounding DINO."""
    with session.session(PATIENCE) as client:
        made = {"kind": f"DETECTOR_KIND_{kind.name.upper()}"}
        _create(client, name, made, follow, as_json, upload=upload_file(client, file))


def _create(client: Client, name: str, made: dict[str, Any], follow: bool, as_json: bool, **how: Any) -> None:
    full = session.full_name(name, _DETECTOR)
    parent, ident = session.organization(), full.split("/")[-1]
    started = client.dataset.create_detector(parent=parent, detector_id=ident, detector=made, **how)
    follow_task(client, started, follow, as_json)


def read_targets(
    request: RequestArgument,
    deployment: DeploymentOption = "",
    model_uri: UriOption = "",
    model: ModelOption = "",
    model_secret: SecretOption = "",
    as_json: JsonOption = False,
) -> None:
    """Read what a request asks to be found in images. Without a model: by a list of words for drawn shapes."""
    with session.session(PATIENCE) as client:
        found = _read(client, request, deployment, model_uri, model, model_secret)
        session.show(found, as_json)


def _read(client: Client, request: str, deployment: str, uri: str, model: str, secret: str) -> Any:
    asked: dict[str, Any] = {"parent": session.organization(), "request": request}
    if deployment or uri:
        asked["language_model"] = {
            "deployment": session.full_name(deployment, "orgs/*/deployments/*") if deployment else "",
            "uri": uri,
            "model": model,
            "secret": session.full_name(secret, "orgs/*/secrets/*") if secret else "",
        }
    return client.dataset.read_targets(**asked)


def annotate_version(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    request: Annotated[str, typer.Argument(help="What is to be marked, in Chinese or English; or --target.")] = "",
    detector: Annotated[str, typer.Option(help="See `argosy detector list`; `argosy detector train` makes one.")] = "",
    target: Annotated[list[str] | None, typer.Option(help="A phrase to be found; can be given again.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A phrase not to be marked; can be given again.")] = None,
    least_score: Annotated[float, typer.Option(min=0, max=1, help="Of a box that is kept.")] = 0.05,
    deployment: DeploymentOption = "",
    model_uri: UriOption = "",
    model: ModelOption = "",
    model_secret: SecretOption = "",
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Look for things in the images of a version; boxes with scores become a new version, for people to correct."""
    with session.session(PATIENCE) as client:
        if not detector:
            raise session.Misuse(
                "give --detector: `argosy detector list` shows them, `argosy detector train` makes one"
            )
        if bool(request) == bool(target):
            raise session.Misuse("give either what is to be marked, or --target")
        targets, excluded = list(target or []), list(exclude or [])
        if request:
            reading = _read(client, request, deployment, model_uri, model, model_secret)
            targets, excluded = list(reading.targets), [*reading.excluded, *excluded]
            _show_reading(reading)
        started = client.dataset.annotate_version(
            name=newest(client, version),
            detector=session.full_name(detector, _DETECTOR),
            targets=targets,
            excluded=excluded,
            least_score=least_score,
        )
        follow_to_report(client, started, follow, as_json)


def _show_reading(reading: Any) -> None:
    """What a request was taken for; half of it is not taken for all of it unseen."""
    console = session.errors_console
    left_out = f", but not {', '.join(reading.excluded)}" if reading.excluded else ""
    console.print(f"looking for {', '.join(reading.targets)}{left_out} (read by {reading.reader})", markup=False)
    if reading.unread:
        unread = ", ".join(reading.unread)
        raise session.Misuse(f"not understood: {unread}. Say it otherwise, ask a language model, or give --target")


def mount(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the commands; gives them by noun."""
    app.add_typer(detector, name="detector", rich_help_panel="The main job")
    return {"detector": detector}
