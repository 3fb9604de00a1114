"""``sagittal users``: who may come in, from the machine of the service itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.serve import Data, ServeConfig, read
from sagittal.errors import ConfigError, nearest, require

if TYPE_CHECKING:
    from sagittal.database.connect import Database
    from sagittal.protect.users import User

ACTIONS = ("list", "add", "link", "deactivate", "activate", "role", "token")


@command(
    brief="Add users of the service, and let them in.",
    settings=False,
    examples="""
    sagittal users list
    sagittal users add ada --role reader
    sagittal users link ada
    sagittal users role ada --role engineer
    sagittal users deactivate ada
    sagittal users token pacs-bridge --label orthanc
    """,
)
def users(
    desk: Desk,
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help="list, add, link, role, token, deactivate, activate.")
    ] = "list",
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the user.", show_default=False)] = None,
    role: Annotated[
        str | None, typer.Option("--role", metavar="ROLE", help="administrator, engineer, reader or machine.")
    ] = None,
    label: Annotated[
        str, typer.Option("--label", metavar="TEXT", help="What a token is for.")
    ] = "made on the machine of the service",
    config: ServeConfig = None,
    data: Data = None,
) -> None:
    """List users, add one, make a link by which one chooses a password, or put one out of use; works while it serves.

    A link and a token are printed once, and kept only as their hash.
    """
    if action not in ACTIONS:
        raise ConfigError(f"unknown action '{action}'. {nearest(action, ACTIONS)}")
    require("sqlalchemy", feature="sagittal users", extra="serve")
    given = read(config, {"server.data": data})
    from sagittal.database.connect import Database
    from sagittal.protect.audit import Audit
    from sagittal.protect.users import list_users

    given.server.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database.open(given.server.database_url)
    try:
        if action == "list":
            shown = [_shown(user) for user in list_users(db)]
            desk.answer(
                shown,
                "\n".join(f"{one['name']}  {one['role']}  {one['state']}" for one in shown) or "there are no users",
            )
            return
        answer = _act(db, action, name, role, label)
        Audit(db).record("sagittal", "users", details={"action": action, "user": answer["id"], "by": "command line"})
    finally:
        db.close()
    link = answer.get("link")
    if link is not None:
        base = given.server.public_url.rstrip("/") or f"http://localhost:{given.server.port}"
        answer["link"] = f"{base}/link#{link}"
    desk.answer(
        answer,
        str(answer.get("link") or answer.get("token") or f"{answer['name']}  {answer['role']}  {answer['state']}"),
    )


def _act(db: Database, action: str, name: str | None, role: str | None, label: str) -> dict[str, Any]:
    from sagittal.protect.links import make_link
    from sagittal.protect.tokens import make_token
    from sagittal.protect.users import add_user, change_user, find_name, list_users

    if not name:
        raise ConfigError(f"which user? sagittal users {action} NAME")
    if action == "add":
        if role is None:
            raise ConfigError("in which role? --role administrator, engineer, reader or machine")
        user = add_user(db, name, role)
        return _shown(user) | ({} if role == "machine" else {"link": make_link(db, user.id)})
    found = find_name(db, name)
    if found is None:
        raise ConfigError(f"there is no user '{name}'. {nearest(name, [user.name for user in list_users(db)])}")
    if action == "link":
        return _shown(found) | {"link": make_link(db, found.id)}
    if action == "token":
        return _shown(found) | {"token": make_token(db, found.id, label)[0]}
    if action == "role":
        if role is None:
            raise ConfigError("which role? --role administrator, engineer, reader or machine")
        return _shown(change_user(db, found.id, role=role))
    return _shown(change_user(db, found.id, active=action == "activate"))


def _shown(user: User) -> dict[str, Any]:
    state = "in use" if user.active else "out of use"
    if user.active and not user.has_password and not user.issuer and user.role != "machine":
        state = "has no password yet"
    return {"id": user.id, "name": user.name, "role": user.role, "state": state}
