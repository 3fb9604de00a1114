"""``sagittal viewer``: the viewers of others that the service shows images with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sagittal.cli.command import Desk, command
from sagittal.errors import ConfigError, nearest

_ACTIONS = ("install", "list", "remove")


@command(
    brief="Install NiiVue or OHIF for the reader's pages.",
    examples="""
    sagittal viewer install niivue
    sagittal viewer install ohif --data /srv/sagittal
    sagittal viewer install ohif --file ohif-app.tgz
    sagittal viewer list
    """,
)
def viewer(
    desk: Desk,
    action: Annotated[str, typer.Argument(metavar="install|list|remove", help="What to do.", show_default=False)],
    name: Annotated[str | None, typer.Argument(metavar="niivue|ohif", help="The viewer.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="TGZ", help="Take the npm package from this file, not from the net."),
    ] = None,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FOLDER",
            envvar="SAGITTAL_SERVE__SERVER__DATA",
            show_envvar=False,
            help="Data of the service.",
        ),
    ] = Path("sagittal-data"),
    registry: Annotated[
        str | None,
        typer.Option("--registry", metavar="URL", help="npm registry; the one that npm is set to by default."),
    ] = None,
) -> None:
    """Fetch a viewer's npm package, check it against its known SHA-512 and unpack it beside the service's data.

    NiiVue shows volumes inside the study page, also in three dimensions; without it the page has a viewer of its own.
    OHIF opens from the study page in a window of its own. Neither is part of Sagittal, and both run on this service only.
    """
    from sagittal.serve.viewer import PACKAGES, find_viewers, install_viewer, remove_viewer, viewers_folder
    from sagittal.serve.viewer_fetch import from_file, from_npm

    folder = viewers_folder(data)
    if action not in _ACTIONS:
        raise ConfigError(f"'{action}' is not something to do with a viewer. {nearest(action, _ACTIONS)}")
    if action == "list":
        there = find_viewers(folder)
        rows = [
            {
                "name": key,
                "package": one.package,
                "version": one.version,
                "licence": one.licence,
                "installed": there[key].version if key in there else None,
            }
            for key, one in PACKAGES.items()
        ]
        text = "\n".join(
            f"{row['name']:<8} {row['package']} {row['version']} ({row['licence']}): "
            + (f"installed, {row['installed']}" if row["installed"] else "not installed")
            for row in rows
        )
        desk.answer({"viewers": rows, "folder": folder}, text)
        return
    if name is None:
        raise ConfigError(f"name the viewer: sagittal viewer {action} niivue|ohif")
    if action == "remove":
        gone = remove_viewer(name, folder)
        desk.answer({"name": name, "removed": gone}, f"{name} is removed" if gone else f"{name} was not installed")
        return
    fetch = from_file(file) if file is not None else from_npm(registry, environment=os.environ, home=Path.home())
    made = install_viewer(name, folder, fetch=fetch, say=desk.reporter.say)
    desk.answer(
        {"name": made.name, "version": made.version, "folder": made.folder, "files": len(made.files)},
        f"{made.name} {made.version} is installed in {made.folder} ({len(made.files)} files)",
    )
    desk.reporter.say("the service shows it from the next page on; it need not be started again")
