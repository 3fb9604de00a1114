"""The DICOM node: listens, lets known peers in, and talks to each in a thread of its own.

Everything a peer could use up is bounded: connections, threads, bytes before and after the association, time. A peer
that is refused hears why (PS3.8 9.3.4), and an administrator sees it; no title or address of an unknown one reaches the
log.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from sagittal.archive.archive import Archive
from sagittal.database.events import report_event
from sagittal.errors import ConfigError, ResourceError, ServeError
from sagittal.node import callers, pdu
from sagittal.node.callers import Callers
from sagittal.node.commitment import Commitments
from sagittal.node.commitment_data import Outcome
from sagittal.node.dicom_services import Caller, Conversation, Count, Services, count_nothing
from sagittal.node.dicom_tls import client_context, server_context
from sagittal.node.negotiation import COMMITMENT, VERIFICATION, choose_contexts, choose_roles
from sagittal.node.options import Dicom
from sagittal.node.pdu import AcceptedContext, AssociateRequest, ProtocolError
from sagittal.node.report_commitment import report_anew
from sagittal.node.store_status import place_of
from sagittal.node.upper_layer import Ended, UpperLayer, WireLimits
from sagittal.protect.audit import Audit

logger = logging.getLogger(__name__)

#: Connections that are not associations (not yet, not any more), altogether and from one address.
MOST_WAITING, MOST_WAITING_OF_ONE = 32, 16


class DicomNode:
    """A DICOM node that receives; runs in threads of its own between :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    options : Dicom
        ``[dicom]`` of the configuration.
    archive : Archive
        Takes the objects; its database keeps storage commitments and events.
    host : str
        Where it listens; only programs on this machine reach the default. Port 0 takes any that is free.
    wire : WireLimits or None
        Limits of size and time; by default the usual ones with the configured idle time.
    audit : Audit or None
        The trail.
    on_committed : callable
        Told of the instances (their UIDs) for which a peer asked storage commitment, as far as they are here.
    count : Count
        Told of each association and object: ``dicom_associations`` and ``dicom_objects`` with the outcome, ``dicom_bytes``.
    on_report : callable
        Told of storage commitments that others report to us: title, transaction UID, whether all objects are safe.

    Raises
    ------
    ConfigError
        If a title, a peer or the certificate is no such thing.
    """

    def __init__(
        self,
        options: Dicom,
        archive: Archive,
        *,
        host: str = "127.0.0.1",
        wire: WireLimits | None = None,
        audit: Audit | None = None,
        count: Count = count_nothing,
        on_committed: Callable[[Sequence[str]], object] = lambda _uids: None,
        on_report: Callable[[str, str, bool], None] = lambda _title, _transaction, _safe: None,
    ) -> None:
        self._options, self._host, self._db, self._audit = options, options.host or host, archive.db, audit
        self._wire = wire or WireLimits(idle_s=options.idle_s)
        self._callers = Callers(options.ae_title, options.peers, allow_unknown=options.allow_unknown)
        self._tls = self._server_context()
        self._commitments = Commitments(archive, report=self._report, on_committed=on_committed)
        self._services = Services(archive, self._commitments, on_report, options.most_object_bytes, count)
        self._count = count
        self._stopping, self._killed = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._waiting: Counter[str] = Counter()  # connections by address that are not associations
        self._associations = 0
        self._listener: socket.socket | None = None
        self._doorman: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Where it listens; the system's choice where 0 was asked for.

        Raises
        ------
        ServeError
            If it does not listen.
        """
        if self._listener is None:
            raise ServeError("the DICOM node has not been started")
        return int(self._listener.getsockname()[1])

    @property
    def associations(self) -> int:
        """How many there are now."""
        return self._associations

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ServeError
            If the port cannot be had.
        """
        options = self._options
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._listener = socket.create_server((self._host, options.port), family=family, backlog=128)
        except OSError as error:
            raise ServeError(
                f"the DICOM node cannot listen at {self._host} port {options.port} ({error.strerror}): another program "
                "has it, or the address is not of this machine. Choose another one with [dicom] port and host."
            ) from error
        self._listener.settimeout(0.5)
        self._commitments.start()
        self._doorman = threading.Thread(target=self._listen, name="dicom-listen", daemon=True)
        self._doorman.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Take no new association or object, let objects that are under way finish for a while, then cut them off."""
        self._stopping.set()
        if self._listener is not None and self._doorman is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections
            self._doorman.join()
        due = time.monotonic() + grace_s
        for thread in self._running():
            thread.join(max(0.0, due - time.monotonic()))
        self._killed.set()
        for thread in self._running():
            thread.join(1.0)
        with self._lock:
            left = list(self._threads.values())
        for connection in left:  # in a TLS handshake, perhaps
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._running():
            thread.join(4.0)
        self._commitments.stop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _running(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    # Connections ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = self._listener
        assert listener is not None  # start() has made it
        while not self._stopping.is_set():
            try:
                connection, where = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # too many open files: wait for some to be closed
                if self._stopping.is_set():
                    break
                logger.warning("a DICOM connection was not taken: %s", type(error).__name__)
                self._stopping.wait(0.2)
                continue
            self._let_in(connection, str(where[0]))

    def _let_in(self, connection: socket.socket, address: str) -> None:
        with self._lock:
            room = self._waiting.total() < MOST_WAITING and self._waiting[address] < MOST_WAITING_OF_ONE
        if not room or self._callers.is_tiresome(address):
            connection.close()
            return
        thread = threading.Thread(target=self._talk, args=(connection, address), name="dicom-association", daemon=True)
        with self._lock:
            self._waiting[address] += 1
            self._threads[thread] = connection
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            connection.close()
            with self._lock:
                self._leave_waiting(address)
                self._threads.pop(thread, None)

    def _leave_waiting(self, address: str) -> None:
        self._waiting[address] -= 1
        if self._waiting[address] <= 0:
            del self._waiting[address]

    def _talk(self, connection: socket.socket, address: str) -> None:
        """One connection, from its first byte to its last."""
        try:
            due = time.monotonic() + self._wire.artim_s
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = self._secure(connection, address)
            if secured is not None:
                connection = secured
                self._attend(connection, address, due)
        except Ended as error:
            logger.debug("an association ended: %s", error)
        except ProtocolError as error:
            logger.info("an association was aborted: %s", error)
        except (OSError, ServeError) as error:
            logger.warning("an association broke: %s", type(error).__name__)
        finally:
            connection.close()
            with self._lock:
                self._leave_waiting(address)
                self._threads.pop(threading.current_thread(), None)

    def _attend(self, connection: socket.socket, address: str, due: float) -> None:
        layer = UpperLayer(connection, self._wire, stopping=self._stopping, killed=self._killed)
        try:
            self._associate(layer, address, due)
        except (Ended, ProtocolError):
            raise
        except Exception as error:  # the thread ends, the peer is told, and nobody else notices
            logger.error("an association ended by a fault of ours: %s", place_of(error))
            layer.abort()
        finally:
            layer.linger()

    def _secure(self, connection: socket.socket, address: str) -> socket.socket | None:
        """The connection after its TLS handshake, if there is to be one; None if that failed."""
        if self._tls is None:
            return connection
        connection.settimeout(self._wire.artim_s)
        try:
            return self._tls.wrap_socket(connection, server_side=True)
        except OSError as error:
            self._count("dicom_associations", outcome="tls")
            # Who connects and leaves without a word only looks whether somebody is there.
            if not isinstance(error, (ssl.SSLEOFError, ConnectionError)) and self._callers.take_refusal(address):
                why = "not finished in time" if isinstance(error, TimeoutError) else _words(error)
                self._tell("dicom-tls", f"A TLS connection for DICOM failed: {why}.", address)
                self._record("", address, "tls")
            return None

    # Associations -----------------------------------------------------------------------------------------------------

    def _associate(self, layer: UpperLayer, address: str, due: float) -> None:
        try:
            request = layer.read_request(due)
        except ProtocolError as error:
            self._count("dicom_associations", outcome="malformed")
            if self._callers.take_refusal(address):
                self._tell("dicom-refused", f"A connection was refused: {error}.", address)
            raise
        refusal = self._callers.refusal(request, address)
        if refusal is not None:
            self._count("dicom_associations", outcome="refused")
            if self._callers.take_refusal(address):
                self._tell(
                    "dicom-refused",
                    f"An association was refused: {_WORDS[refusal]}. If the peer is one of yours, name its title and "
                    "address in [dicom] peers.",
                    address,
                )
                self._record(request.calling, address, _WORDS[refusal])
            layer.reject(*refusal)
            return
        with self._lock:
            taken = self._associations < self._options.most_associations and not self._stopping.is_set()
            self._associations += taken
        if not taken:
            self._count("dicom_associations", outcome="limit")
            if self._callers.take_refusal(address):
                self._tell(
                    "dicom-limit",
                    f"An association was refused: {self._options.most_associations} are open. Raise [dicom] "
                    "most_associations, or let peers open fewer.",
                    address,
                )
            layer.reject(*callers.TOO_MANY)
            return
        try:
            self._converse(layer, request, address)
        finally:
            with self._lock:
                self._associations -= 1

    def _converse(self, layer: UpperLayer, request: AssociateRequest, address: str) -> None:
        answers = choose_contexts(request, unknown=self._options.unknown_classes)
        agreed = {number: c for number, c in answers.items() if isinstance(c, AcceptedContext)}
        if any(c.abstract_syntax not in (VERIFICATION, COMMITMENT) for c in agreed.values()) and not self._has_room():
            self._count("dicom_associations", outcome="full")
            layer.reject(*callers.CONGESTED)  # before a study comes half
            return
        self._count("dicom_associations", outcome="accepted")
        layer.accept(
            pdu.write_accept(request, answers, most_pdu=self._wire.most_pdu, roles=choose_roles(request, answers)),
            peer_most=request.most_pdu,
        )
        caller = Caller(request.calling, address)
        conversation = Conversation(layer, agreed, caller, self._services)
        with self._lock:
            self._leave_waiting(address)  # it is an association now, and counted as that
        try:
            conversation.run()
        finally:
            with self._lock:
                self._waiting[address] += 1
            self._count("dicom_bytes", layer.received)
            self._record_received(caller, conversation)

    def _has_room(self) -> bool:
        """Whether the disk takes objects; if it does not, an event says so."""
        archive = self._services.archive
        try:
            archive.check_space(0)
        except (ResourceError, ServeError) as error:
            archive.failed("dicom", error)
            return False
        return True

    # What people should know ------------------------------------------------------------------------------------------

    def _record_received(self, caller: Caller, conversation: Conversation) -> None:
        """One record a study, PS3.15 A.5.3.7: never two patients in one."""
        if self._audit is None:
            return
        studies: dict[int, dict[str, int]] = {}
        for (study, outcome), count in conversation.received.items():
            studies.setdefault(study, {})[outcome] = count
        try:
            for study, counts in studies.items():
                self._audit.record(
                    caller.ae_title, "receive", role="machine", address=caller.address, study_id=study, details=counts
                )
        except (ServeError, ResourceError) as error:
            logger.error("what was received could not be recorded: %s", type(error).__name__)

    def _record(self, title: str, address: str, why: str) -> None:
        if self._audit is None:
            return
        try:
            self._audit.record(
                title, "refused", role="machine", address=address, outcome="refused", details={"reason": why}
            )
        except (ServeError, ResourceError) as error:
            logger.error("a refusal could not be recorded: %s", type(error).__name__)

    def _tell(self, code: str, message: str, address: str) -> None:
        try:
            report_event(self._db, code, "warning", message, address)
        except (ServeError, ResourceError) as error:
            logger.error("an event could not be kept: %s", type(error).__name__)

    # TLS and reports --------------------------------------------------------------------------------------------------

    def _server_context(self) -> ssl.SSLContext | None:
        options = self._options
        if not options.tls:
            return None
        if options.certificate is None or options.key is None:
            raise ConfigError('[dicom] tls = true needs certificate = "..." and key = "..."')
        return server_context(options.certificate, options.key, ca=options.ca, mutual=options.mutual)

    def _report(self, title: str, outcome: Outcome) -> None:
        options = self._options
        context = partial(client_context, certificate=options.certificate, key=options.key, ca=options.ca)
        report_anew(
            outcome,
            self._callers.peer(title),
            ae_title=options.ae_title,
            tls=context,
        )


_WORDS = {
    callers.NO_PROTOCOL_VERSION: "its version of the protocol is not known",
    callers.NO_APPLICATION_CONTEXT: "its application context is not DICOM's",
    callers.UNKNOWN_CALLED: "it called another title than ours",
    callers.UNKNOWN_CALLING: "its title and address are not on the list",
}


def _words(error: OSError) -> str:
    """What OpenSSL says, such as "peer did not return a certificate"."""
    return str(getattr(error, "reason", None) or "unknown reason").lower().replace("_", " ")
