"""Roles: what each kind of user may do. A caller without the permission of a route is refused there.

permission  administrator  engineer  reader  machine   what it opens
account     yes            yes       yes     yes       one's own name, password, tokens; the description of the API
see         yes            yes       yes     yes       worklist, studies, images, results, DICOMweb queries and retrieval
send        yes            yes                yes       give studies in: upload, STOW, predict, infer
review      yes                       yes               accept, correct, reject
steer       yes            yes       yes               urgency, run again, cancel, retry, complete a series
export      yes            yes                          truth for the next training
operate     yes            yes                          models, rules, destinations, queue, conflicts, events, storage
metrics     yes            yes                yes       counters for Prometheus
delete      yes                                         a study, with everything made of it
users       yes                                         people, their roles and links
audit       yes                                         the trail
"""

from __future__ import annotations

from typing import Literal, get_args

from sagittal.errors import ConfigError, nearest

Permission = Literal[
    "account", "see", "send", "review", "steer", "export", "operate", "metrics", "delete", "users", "audit"
]
Role = Literal["administrator", "engineer", "reader", "machine"]

#: Every permission.
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
#: Every role, the mightiest first.
ROLES: tuple[Role, ...] = get_args(Role)

_MAY: dict[str, frozenset[Permission]] = {
    "administrator": frozenset(PERMISSIONS),
    "engineer": frozenset({"account", "see", "send", "steer", "export", "operate", "metrics"}),
    "reader": frozenset({"account", "see", "review", "steer"}),
    "machine": frozenset({"account", "see", "send", "metrics"}),
}


def permissions(role: str) -> frozenset[Permission]:
    """What a role may do; nothing where the role is unknown.

    >>> sorted(permissions("reader"))
    ['account', 'review', 'see', 'steer']
    >>> permissions("visitor")
    frozenset()
    """
    return _MAY.get(role, frozenset())


def check_role(role: str) -> Role:
    """The role, where there is one of this name.

    Raises
    ------
    ConfigError
        If there is none; the message names the nearest.

    >>> check_role("reader")
    'reader'
    """
    for known in ROLES:
        if role == known:
            return known
    raise ConfigError(f"unknown role '{role}'. {nearest(role, ROLES)}")
