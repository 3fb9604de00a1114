"""What is done with the messages of one association: C-ECHO, C-STORE, and both sides of storage commitment.

Standard: PS3.7 9.1 (DIMSE-C), 10.1 (DIMSE-N), PS3.4 B (storage) and J (storage commitment). One message at a time: its
answer is sent before the next is looked at. Fragments of an object go straight into the archive, never the whole object
into memory, and success is answered when the archive says that the object is safe.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sagittal.archive.archive import Archive
from sagittal.archive.meta import FileMeta
from sagittal.archive.receive import Incoming
from sagittal.archive.refused import Refused, record_refusal
from sagittal.errors import ResourceError, ServeError
from sagittal.node import dimse
from sagittal.node.commitment import Commitments, Pending
from sagittal.node.commitment_data import read_action, read_report, write_report
from sagittal.node.data_sinks import Collected, Dropped, Sink
from sagittal.node.dimse import Command
from sagittal.node.negotiation import COMMITMENT, VERIFICATION
from sagittal.node.pdu import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION, AcceptedContext, ProtocolError
from sagittal.node.store_status import status_of
from sagittal.node.upper_layer import UpperLayer

logger = logging.getLogger(__name__)

#: Storage commitments of one association that are not answered yet.
MOST_PENDING = 16
#: Seconds for which a peer may wait silently for a storage commitment.
MOST_WAIT_S = 600.0


@dataclass(frozen=True)
class Caller:
    """Who is at the other end.

    Attributes
    ----------
    ae_title : str
        As it calls itself.
    address : str
        As the network says.
    """

    ae_title: str
    address: str


class Count(Protocol):
    """Counts what happens, such as :meth:`sagittal.serve.metrics.Metrics.count`."""

    def __call__(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Count under a name with labels."""


def count_nothing(name: str, by: float = 1.0, **labels: str) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True)
class Services:
    """What all associations of a node share.

    Attributes
    ----------
    commitments : Commitments or None
        None: storage commitment is not offered.
    on_report : callable
        Told of each commitment that another archive reports to us: title of the peer, transaction UID, whether all
        objects are safe there.
    most_object : int, bytes
    count : Count
        Told of each object: ``dicom_objects`` with the outcome.
    """

    archive: Archive
    commitments: Commitments | None = None
    on_report: Callable[[str, str, bool], None] = lambda _title, _transaction, _safe: None
    most_object: int = 2**32
    count: Count = count_nothing


class Conversation:
    """The messages of one association, answered one after the other.

    Attributes
    ----------
    received : Counter
        How many objects of each study came: (study's id, outcome) -> number.
    refused : int
        Objects that were not kept.
    """

    def __init__(
        self, layer: UpperLayer, contexts: Mapping[int, AcceptedContext], caller: Caller, services: Services
    ) -> None:
        self.received: Counter[tuple[int, str]] = Counter()
        self.refused = 0
        self._layer, self._contexts, self._caller, self._services = layer, contexts, caller, services
        self._command = bytearray()
        self._sink: Sink | None = None
        self._context = 0  # of the message that is under way; 0: none is
        self._pending: list[Pending] = []
        self._reports: dict[int, Pending] = {}
        self._next_message = 1

    def run(self) -> None:
        """Take and answer messages until the association ends.

        Raises
        ------
        Ended
            Always, in whichever way it ended.
        ProtocolError
            If the peer broke the rules; it has been told.
        """
        try:
            while True:
                for context, header, piece in self._layer.next_fragments():
                    self._take(context, header, piece)
                if self._pending and not self._context:
                    self._wait_for_commitments()
        except ProtocolError as error:
            self._layer.abort(source=2, reason=error.reason)
            raise
        finally:
            if self._sink is not None:
                self._sink.abandon()
            if self._services.commitments is not None:
                for pending in (*self._pending, *self._reports.values()):
                    self._services.commitments.hand_back(pending)

    def _take(self, context: int, header: int, piece: memoryview) -> None:
        if context not in self._contexts or (self._context and context != self._context):
            raise ProtocolError("a fragment of a presentation context that was not agreed, or of another one")
        if header & 1:
            if self._sink is not None:
                raise ProtocolError("a command before the data set of the one before it was complete")
            if not self._context:
                self._context = context
                self._layer.begin_message()
            if len(self._command) + len(piece) > dimse.MOST_COMMAND:
                raise ProtocolError(f"a command of more than {dimse.MOST_COMMAND} bytes")
            self._command += piece
            if header & 2:
                command = dimse.read_command(bytes(self._command))
                self._command.clear()
                self._begin(command)
        else:
            if self._sink is None:
                raise ProtocolError("a data set that no command announced")
            self._sink.write(piece)
            if header & 2:
                sink, self._sink = self._sink, None
                sink.finish()
                self._end()

    def _end(self) -> None:
        self._context = 0
        self._layer.end_message()

    def _answer(self, asked: Command, status: int, comment: str = "") -> None:
        self._layer.send(self._context, dimse.answer(asked, status, comment))

    # Commands ---------------------------------------------------------------------------------------------------------

    def _begin(self, asked: Command) -> None:
        agreed = self._contexts[self._context]
        if asked.field == dimse.C_STORE_RQ and asked.has_data:
            self._sink = self._store_sink(asked, agreed)
        elif asked.field == dimse.N_ACTION_RQ and asked.has_data:
            self._sink = Collected(lambda data: self._commit(asked, agreed, data))
        elif asked.field == dimse.N_EVENT_REPORT_RQ and asked.has_data:
            self._sink = Collected(lambda data: self._hear_report(asked, agreed, data))
        elif asked.has_data:
            unknown = not asked.field & dimse.RESPONSE
            self._sink = Dropped(
                lambda: self._answer(asked, dimse.UNRECOGNIZED_OPERATION) if unknown else self._hear_answer(asked)
            )
        else:
            self._without_data(asked, agreed)
            self._end()

    def _without_data(self, asked: Command, agreed: AcceptedContext) -> None:
        if asked.field == dimse.C_ECHO_RQ:
            known = agreed.abstract_syntax == VERIFICATION
            self._answer(asked, dimse.SUCCESS if known else dimse.CLASS_NOT_SUPPORTED)
        elif asked.field & dimse.RESPONSE:
            self._hear_answer(asked)
        elif asked.field == dimse.C_CANCEL_RQ:
            pass  # it has no answer, and nothing here takes so long that it could be cancelled: PS3.7 9.3.2.3
        elif asked.field == dimse.C_STORE_RQ:
            self._answer(asked, dimse.CANNOT_UNDERSTAND, "without a data set")
        elif asked.field in (dimse.N_ACTION_RQ, dimse.N_EVENT_REPORT_RQ):
            self._answer(asked, dimse.INVALID_ARGUMENT, "without a data set")
        else:
            self._answer(asked, dimse.UNRECOGNIZED_OPERATION)

    def _store_sink(self, asked: Command, agreed: AcceptedContext) -> Sink:
        if asked.class_uid != agreed.abstract_syntax or agreed.abstract_syntax in (VERIFICATION, COMMITMENT):
            self._list("mismatch", "not of the class of its presentation context")
            return self._refusing(asked, dimse.CLASS_NOT_SUPPORTED, "not the class of its presentation context")
        if not dimse.is_uid(asked.instance_uid):
            self._list("identifiers", "the announced SOP Instance UID is no UID")
            return self._refusing(asked, dimse.INVALID_INSTANCE, "not a UID")
        meta = FileMeta(
            sop_class_uid=asked.class_uid,
            sop_instance_uid=asked.instance_uid,
            transfer_syntax_uid=agreed.transfer_syntax,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,  # of the one who writes the file
            implementation_version=IMPLEMENTATION_VERSION,
            source_ae=self._caller.ae_title,
        )
        try:
            incoming = self._services.archive.receive(self._source, meta=meta)
        except Exception as error:
            return self._refusing(asked, *status_of(error))
        return _Stored(self, asked, incoming)

    @property
    def _source(self) -> str:
        return f"dicom {self._caller.ae_title}"

    def _list(self, code: str, reason: str) -> None:
        """Put what the archive does not get to see into the list of refusals."""
        try:
            record_refusal(self._services.archive.db, self._source, code, reason)
        except (ServeError, ResourceError):
            logger.warning("an object was refused, and the database could not be told why")

    def _count_refused(self) -> None:
        self.refused += 1
        self._services.count("dicom_objects", outcome="refused")

    def _refusing(self, asked: Command, status: int, comment: str) -> Sink:
        self._count_refused()
        return Dropped(lambda: self._answer(asked, status, comment))

    # Storage commitment -----------------------------------------------------------------------------------------------

    def _commit(self, asked: Command, agreed: AcceptedContext, data: bytes) -> None:
        """Answer an N-ACTION, PS3.4 J.3.2: the request is in the database before its answer."""
        commitments = self._services.commitments
        if agreed.abstract_syntax != COMMITMENT or asked.class_uid != COMMITMENT or commitments is None:
            self._answer(asked, dimse.NO_SUCH_CLASS)
        elif asked.instance_uid != COMMITMENT + ".1":
            self._answer(asked, dimse.NO_SUCH_INSTANCE)
        elif asked.kind != 1:
            self._answer(asked, dimse.NO_SUCH_ACTION)
        elif len(self._pending) + len(self._reports) >= MOST_PENDING:
            self._answer(asked, dimse.RESOURCE_LIMITATION)
        else:
            try:
                transaction, items = read_action(data, agreed.transfer_syntax)
                pending = commitments.ask(self._caller.ae_title, transaction, items)
            except Refused as error:
                self._answer(asked, dimse.INVALID_ARGUMENT, error.reason)
            except (ServeError, ResourceError):
                self._answer(asked, dimse.PROCESSING_FAILURE, "not kept now; ask again")
            else:
                self._answer(asked, dimse.SUCCESS)
                self._pending.append(pending)

    def _wait_for_commitments(self) -> None:
        """Report what has been looked at; meanwhile the peer may be silent, but not for ever."""
        if any(time.monotonic() - pending.since < MOST_WAIT_S for pending in self._pending):
            self._layer.keep()
        if not self._layer.waiting:  # what the peer has sent comes first: it may be its release
            self._report_commitments()

    def _report_commitments(self) -> None:
        """Send what has been checked as N-EVENT-REPORT on this association, PS3.4 J.3.3."""
        context = next((c for c in self._contexts.values() if c.abstract_syntax == COMMITMENT), None)
        for pending in [p for p in self._pending if p.outcome is not None]:
            if context is None or pending.outcome is None:  # pragma: no cover  # asked on a context of it
                continue
            self._pending.remove(pending)
            number, self._next_message = self._next_message, self._next_message % 65535 + 1
            self._reports[number] = pending
            self._layer.send(
                context.id,
                dimse.event_report(number, COMMITMENT, COMMITMENT + ".1", pending.outcome.kind),
                write_report(pending.outcome, context.transfer_syntax),
            )

    def _hear_answer(self, answered: Command) -> None:
        """The peer answers a report of ours; any other answer was not asked for and is left."""
        pending = self._reports.pop(answered.message, None)
        if pending is None or self._services.commitments is None:
            return
        if answered.status == dimse.SUCCESS:
            try:
                self._services.commitments.close(pending)
                return
            except (ServeError, ResourceError):
                logger.warning("commitment %d will be reported twice: the database cannot be written", pending.row)
        self._services.commitments.hand_back(pending)

    def _hear_report(self, asked: Command, agreed: AcceptedContext, data: bytes) -> None:
        """Another archive reports whether it keeps what we sent it, PS3.4 J.3.3."""
        if agreed.abstract_syntax != COMMITMENT or asked.class_uid != COMMITMENT:
            self._answer(asked, dimse.NO_SUCH_CLASS)
        elif asked.kind not in (1, 2):
            self._answer(asked, dimse.NO_SUCH_EVENT)
        else:
            try:
                transaction, failed = read_report(data, agreed.transfer_syntax)
                self._services.on_report(self._caller.ae_title, transaction, asked.kind == 1 and not failed)
            except Refused as error:
                self._answer(asked, dimse.INVALID_ARGUMENT, error.reason)
            except (ServeError, ResourceError):
                self._answer(asked, dimse.PROCESSING_FAILURE, "not kept now; report again")
            else:
                self._answer(asked, dimse.SUCCESS)

    # Objects ----------------------------------------------------------------------------------------------------------

    def _stored(self, asked: Command, incoming: Incoming) -> None:
        """All bytes are there: make them safe, then answer."""
        try:
            receipt = incoming.finish()
        except Exception as error:
            self._count_refused()
            self._answer(asked, *status_of(error))
        else:
            # The same object again, and other bytes under its UID, are kept as well: both are success (PS3.4 B.2.3 has
            # warnings for coerced and discarded elements only), and an administrator is shown the conflict.
            self.received[receipt.study_id, receipt.outcome] += 1
            self._services.count("dicom_objects", outcome=receipt.outcome)
            self._answer(asked, dimse.SUCCESS)


class _Stored:
    """The data set of an object, on its way into the archive."""

    def __init__(self, conversation: Conversation, asked: Command, incoming: Incoming) -> None:
        self._conversation, self._asked = conversation, asked
        self._incoming: Incoming | None = incoming
        self._room = conversation._services.most_object
        self._refusal: Sink | None = None

    def write(self, piece: memoryview) -> None:
        if self._incoming is None:
            if self._refusal is not None:
                self._refusal.write(piece)
            return
        self._room -= len(piece)
        try:
            if self._room < 0:
                reason = f"more than the {self._conversation._services.most_object:,} bytes that are allowed"
                self._conversation._list("too-large", reason)
                raise Refused("too-large", reason)
            self._incoming.write(piece)
        except Exception as error:
            self.abandon()
            self._refusal = self._conversation._refusing(self._asked, *status_of(error))

    def finish(self) -> None:
        if self._refusal is not None:
            self._refusal.finish()
        elif self._incoming is not None:
            incoming, self._incoming = self._incoming, None
            self._conversation._stored(self._asked, incoming)

    def abandon(self) -> None:
        if self._incoming is not None:
            incoming, self._incoming = self._incoming, None
            incoming.abandon()
