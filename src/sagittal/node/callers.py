"""Who may open an association: titles and addresses that are known, and how often others may try.

A title is what a peer says of itself and an address what the network says, so both must fit one entry of the list. With
an empty list only programs on this machine may call.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sagittal.errors import ConfigError
from sagittal.node.pdu import APPLICATION_CONTEXT, AssociateRequest
from sagittal.protect.rate import Rate

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Refusals of an association: result, source and reason, PS3.8 table 9-21.
NO_APPLICATION_CONTEXT = (1, 1, 2)
UNKNOWN_CALLING = (1, 1, 3)
UNKNOWN_CALLED = (1, 1, 7)
NO_PROTOCOL_VERSION = (1, 2, 2)
CONGESTED = (2, 3, 1)
TOO_MANY = (2, 3, 2)

#: Refusals of one address that are answered, recorded and counted at once, and the seconds in which that comes back.
REFUSALS, REFUSALS_S = 30, 60.0
_ASK_AGAIN_S = 60.0  # how often names of hosts are looked up


@dataclass(frozen=True)
class Peer:
    """A machine that may send.

    Attributes
    ----------
    ae_title : str
        At most 16 characters, PS3.5 6.2.
    address : str
        An IP address, a network such as ``10.3.0.0/16``, or a host's name.
    port : int
        Where it listens, for the answers to storage commitment that it does not wait for; 0: nowhere.
    tls : bool
        Whether it listens with TLS.
    """

    ae_title: str
    address: str
    port: int = 0
    tls: bool = False

    def __post_init__(self) -> None:
        check_title(self.ae_title)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: a number from 0 to 65535 is expected, found {self.port}")
        if "/" in self.address or not re.fullmatch(r"[0-9A-Za-z_.:%-]+", self.address):
            try:
                ipaddress.ip_network(self.address, strict=False)
            except ValueError as error:
                raise ConfigError(
                    f"address: {self.address!r} is no IP address, no network such as 10.3.0.0/16 and no host's name"
                ) from error


def check_title(title: str) -> None:
    """Refuse what is no title of an application entity, PS3.5 6.2.

    Raises
    ------
    ConfigError
    """
    if not 1 <= len(title.strip()) <= 16 or any(not " " <= c <= "~" or c == "\\" for c in title):
        raise ConfigError(
            f"{title!r} is not a title of an application entity: 1 to 16 printable ASCII characters but \\"
        )


class Callers:
    """The list of those who may call, asked for each association.

    Parameters
    ----------
    ae_title : str
        Our own, by which peers must call us.
    peers : sequence of Peer
    allow_unknown : bool
        Whether everyone may call, under any title and from anywhere.
    """

    def __init__(self, ae_title: str, peers: Sequence[Peer] = (), *, allow_unknown: bool = False) -> None:
        self._ae_title, self._peers, self._allow_unknown = ae_title.strip(), tuple(peers), allow_unknown
        check_title(ae_title)
        self._lock = threading.Lock()
        self._networks: list[tuple[Peer, tuple[Network, ...]]] = []
        self._asked = 0.0
        self._rate = Rate(REFUSALS, REFUSALS_S, most_keys=4096)
        self._look_up()

    def refusal(self, request: AssociateRequest, address: str) -> tuple[int, int, int] | None:
        """Why an association is refused: result, source and reason of the A-ASSOCIATE-RJ; None if it is not."""
        if not request.protocol_version & 1:
            return NO_PROTOCOL_VERSION
        if request.application_context != APPLICATION_CONTEXT:
            return NO_APPLICATION_CONTEXT
        if request.called != self._ae_title:
            return UNKNOWN_CALLED
        if not request.calling or "?" in request.calling or not self.knows(request.calling, address):
            return UNKNOWN_CALLING
        return None

    def knows(self, ae_title: str, address: str) -> bool:
        """Whether a title may call from an address."""
        if self._allow_unknown:
            return True
        at = _plain(address)
        if not self._peers:
            return at is not None and at.is_loopback
        return at is not None and any(p.ae_title == ae_title for p in self._at(at))

    def knows_address(self, address: str) -> bool:
        """Whether anyone may call from an address."""
        at = _plain(address)
        return self._allow_unknown or (at is not None and (at.is_loopback or bool(self._find(at))))

    def peer(self, ae_title: str) -> Peer | None:
        """The first entry of a title."""
        return next((peer for peer in self._peers if peer.ae_title == ae_title), None)

    def take_refusal(self, address: str) -> bool:
        """Count a refusal of an address; whether it is still one of those that are recorded."""
        return self._rate.take(address) == 0.0

    def is_tiresome(self, address: str) -> bool:
        """Whether connections of an address are closed unread: it is unknown, and was refused too often of late.

        Known ones are heard further: behind the same address as a machine with a wrong title may stand a right one.
        """
        return self._rate.wait_s(address) > 0 and not self.knows_address(address)

    def _at(self, address: Address) -> list[Peer]:
        found = self._find(address)
        if not found and time.monotonic() - self._asked > _ASK_AGAIN_S:
            self._look_up()  # a host's address may have changed
            found = self._find(address)
        return found

    def _find(self, address: Address) -> list[Peer]:
        with self._lock:
            return [peer for peer, networks in self._networks if any(address in network for network in networks)]

    def _look_up(self) -> None:
        self._asked = time.monotonic()
        found = [(peer, _networks(peer.address)) for peer in self._peers]
        with self._lock:
            self._networks = found


def _plain(address: str) -> Address | None:
    """An address without its scope, and as IPv4 where it is that."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped if mapped is not None else found


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return (ipaddress.ip_network(text, strict=False),)
    except ValueError:
        pass
    try:
        found = {str(item[4][0]).partition("%")[0] for item in socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)}
    except OSError:  # not known now; it is asked again
        return ()
    return tuple(ipaddress.ip_network(address) for address in sorted(found))
