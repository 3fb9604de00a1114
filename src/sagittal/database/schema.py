"""The tables of the service: what arrived, what is to be done, what was found, who said what. Standard: SQL, SQLite and PostgreSQL.

Times are seconds since 1970 in UTC (float); free text of a header is kept as the reader decoded it, never as bytes.
A change here needs a migration in ``migrations/``; a test compares both.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import VARCHAR

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: 64 bits everywhere; SQLite counts up by itself only in an INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")

#: Where a file lies below the archive's folder; compared byte by byte, whatever language a database sorts in.
Place = String(255).with_variant(VARCHAR(255, collation="C"), "postgresql")

# What arrived --------------------------------------------------------------------------------------------------------

studies = Table(
    "studies",
    metadata,
    Column("id", Key, primary_key=True),  # what pages, logs and addresses name; no identifier of the patient
    Column("study_uid", String(64), nullable=False, unique=True),
    Column("patient_id", Text, nullable=False, default=""),
    Column("patient_name", Text, nullable=False, default=""),  # PN as in the header: alphabetic=ideographic=phonetic
    Column("patient_search", Text, nullable=False, default=""),  # =name=name=|id|accession|, folded for searching
    Column("birth_date", String(8), nullable=False, default=""),
    Column("sex", String(16), nullable=False, default=""),
    Column("accession", Text, nullable=False, default=""),
    Column("study_date", String(8), nullable=False, default=""),
    Column("study_time", String(16), nullable=False, default=""),
    Column("description", Text, nullable=False, default=""),
    Column(
        "modalities", Text, nullable=False, default=""
    ),  # sorted, joined by "\\", without those of Sagittal's results
    Column("attributes", JSON, nullable=False, default=dict),  # DICOM JSON of the study level, for QIDO
    Column("series_count", Integer, nullable=False, default=0),
    Column("instance_count", Integer, nullable=False, default=0),
    Column("bytes", BigInteger, nullable=False, default=0),  # of its instances
    Column("arrived_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    # What the worklist shows, kept up to date by whoever changes it:
    Column("status", String(16), nullable=False, default="receiving"),  # see STATUS
    Column("urgency", Integer, nullable=False, default=0),  # 0 routine, 1 urgent, 2 stat
    Column("finding", Text, nullable=False, default=""),  # one line, of the answering model
    Column("confidence", Float),
    Column("abstained", Boolean, nullable=False, default=False),
    Column("verdict", String(16), nullable=False, default=""),  # of the last review: accept, correct, reject
    Column("answered_at", Float),
    Column("deleted_at", Float),
    Index(None, "patient_id"),
    Index(None, "accession"),
    Index(None, "study_date"),
    Index(None, "patient_search"),
    Index(None, "confidence"),
    Index(None, "changed_at"),
    Index(None, "status", "urgency", "arrived_at"),
    # The worklist is filtered in these without reading the table:
    Index("ix_studies_by_time", "arrived_at", "status", "urgency", "verdict", "modalities", "study_date", "abstained"),
    Index("ix_studies_by_need", "verdict", "urgency", "arrived_at", "status", "modalities", "study_date", "abstained"),
)
#: The states of a study, as the worklist shows them.
STATUS = ("receiving", "waiting", "running", "answered", "abstained", "refused", "failed", "no-model")

series = Table(
    "series",
    metadata,
    Column("id", Key, primary_key=True),
    Column("series_uid", String(64), nullable=False, unique=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("modality", String(16), nullable=False, default=""),
    Column("body_part", Text, nullable=False, default=""),
    Column("description", Text, nullable=False, default=""),
    Column("number", Integer),
    Column("attributes", JSON, nullable=False, default=dict),  # DICOM JSON of the series level
    Column("facts", JSON, nullable=False, default=dict),  # what rules look at: thickness, contrast, manufacturer ...
    Column("instance_count", Integer, nullable=False, default=0),
    Column("arrived_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),  # the last instance's arrival
    Column("revision", Integer, nullable=False, default=0),  # counts each completion; late slices make a new one
    Column("complete_at", Float),  # empty while slices may still come
    Column("completed_by", String(16), nullable=False, default=""),  # silence, commitment, call
    Column("problem", Text, nullable=False, default=""),  # mixed patients and the like, in words without identifiers
    Index(None, "complete_at", "changed_at"),
)

instances = Table(
    "instances",
    metadata,
    Column("id", Key, primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("series_id", ForeignKey("series.id"), nullable=False, index=True),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("number", Integer),
    Column("frames", Integer, nullable=False, default=1),
    Column("rows", Integer),
    Column("columns", Integer),
    Column("attributes", JSON, nullable=False, default=dict),  # DICOM JSON of the instance level
    Column("sha256", String(64), nullable=False),  # of the whole file as it lies on disk
    Column("size", BigInteger, nullable=False),
    Column("path", Place, nullable=False),  # below the archive's folder; made of our own hash, never of peer text
    Column("source", Text, nullable=False, default=""),  # "dicom AE", "stow", "rest", "folder", "result"
    Column("arrived_at", Float, nullable=False),
    Column("checked_at", Float),  # the last time that its hash was compared
    Column("damage", String(16), nullable=False, default=""),  # missing, altered
    Index(None, "checked_at"),
    Index(None, "path"),  # which files of a folder have rows
)
_damaged = instances.c.damage != ""
Index("ix_instances_damage", instances.c.damage, sqlite_where=_damaged, postgresql_where=_damaged)  # of those few

#: Other bytes under a UID that is there already: both are kept, and an administrator is shown the pair.
conflicts = Table(
    "conflicts",
    metadata,
    Column("id", Key, primary_key=True),
    Column("instance_id", ForeignKey("instances.id"), nullable=False, index=True),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("path", Place, nullable=False),
    Column("source", Text, nullable=False, default=""),
    Column("arrived_at", Float, nullable=False),
    Column("settled_at", Float),
    Column("settled_by", Text, nullable=False, default=""),
    Column("decision", String(16), nullable=False, default=""),  # keep-first, take-second
    UniqueConstraint("instance_id", "sha256"),
)

#: What was received and not kept as an instance: refused, with the reason an administrator needs. Holds no header text.
refusals = Table(
    "refusals",
    metadata,
    Column("id", Key, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("source", Text, nullable=False, default=""),
    Column("code", String(32), nullable=False),  # no-pixel-data, transfer-syntax, too-large, unreadable, zip-bomb ...
    Column("reason", Text, nullable=False),
    Column("count", Integer, nullable=False, default=1),
)

# What is to be done ---------------------------------------------------------------------------------------------------

jobs = Table(
    "jobs",
    metadata,
    Column("id", Key, primary_key=True),
    Column("kind", String(16), nullable=False),  # choose, answer, deliver, fetch, upload
    Column("key", String(255), nullable=False, unique=True),  # what it is about: the same thing is queued once
    Column("payload", JSON, nullable=False, default=dict),  # keys of rows, never header text
    Column("state", String(16), nullable=False, default="waiting"),  # see JOB_STATES
    Column("priority", Integer, nullable=False, default=0),  # higher first; waiting raises it, so that nothing starves
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),  # not before; set by back-off
    Column("lease_until", Float),
    Column("lease_by", String(64), nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("most_attempts", Integer, nullable=False, default=5),
    Column("progress", Float, nullable=False, default=0.0),
    Column("error", Text, nullable=False, default=""),  # why it was put back, or is dead; without identifiers
    Column("outcome", JSON),
    Column("study_id", ForeignKey("studies.id"), index=True),
    Column("finished_at", Float),
    Index(None, "state", "due_at"),
    Index(None, "finished_at"),
)
JOB_STATES = ("waiting", "leased", "done", "dead", "cancelled")

#: Why a series was used by a model, or not.
choices = Table(
    "choices",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("series_id", ForeignKey("series.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("model", Text, nullable=False),  # name and version
    Column("used", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
    UniqueConstraint("series_id", "revision", "model"),
)

# What was found -------------------------------------------------------------------------------------------------------

results = Table(
    "results",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("role", String(8), nullable=False, default="answers"),  # answers, watches
    Column("inputs", String(64), nullable=False),  # sha256 over the hashes of the instances that were used
    Column("series", JSON, nullable=False, default=list),  # keys of the series that were used
    Column("state", String(16), nullable=False),  # answered, abstained, refused
    Column("summary", Text, nullable=False, default=""),  # the finding in one line
    Column("confidence", Float),
    Column("finding", JSON, nullable=False, default=dict),
    Column("reason", Text, nullable=False, default=""),  # why it abstained or refused
    Column("seconds", Float, nullable=False, default=0.0),
    Column("created_at", Float, nullable=False),
    Column("replaced_by", ForeignKey("results.id")),
    UniqueConstraint("study_id", "checksum", "inputs"),
)

#: Files that hold a result: DICOM objects (instances too, so that DICOMweb serves them), FHIR, HL7, pictures.
objects = Table(
    "objects",
    metadata,
    Column("id", Key, primary_key=True),
    Column("result_id", ForeignKey("results.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # seg, sr, sc, ko, rtstruct, fhir, hl7, json, nifti, map
    Column("instance_id", ForeignKey("instances.id")),
    Column("media_type", Text, nullable=False),
    Column("path", Place, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    UniqueConstraint("result_id", "kind"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Key, primary_key=True),
    Column("result_id", ForeignKey("results.id"), nullable=False, index=True),
    Column("destination", Text, nullable=False),
    Column("state", String(16), nullable=False, default="waiting"),  # waiting, sent, confirmed, failed
    Column("transaction_uid", String(64), nullable=False, default=""),  # of the storage commitment that was asked for
    Column("sent_at", Float),
    Column("confirmed_at", Float),
    Column("error", Text, nullable=False, default=""),
    UniqueConstraint("result_id", "destination"),
)

#: Storage commitments that others asked of us, until they were answered.
commitments = Table(
    "commitments",
    metadata,
    Column("id", Key, primary_key=True),
    Column("transaction_uid", String(64), nullable=False, unique=True),
    Column("peer", Text, nullable=False),
    Column("items", JSON, nullable=False),  # [[sop class, sop instance], ...]
    Column("asked_at", Float, nullable=False),
    Column("answered_at", Float),
    Column("attempts", Integer, nullable=False, default=0),
)

reviews = Table(
    "reviews",
    metadata,
    Column("id", Key, primary_key=True),
    Column("result_id", ForeignKey("results.id"), nullable=False, index=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("verdict", String(16), nullable=False),  # accept, correct, reject
    Column("reason", Text, nullable=False, default=""),
    Column("correction", JSON),  # {"class": ...}, {"boxes": [...]}, {"mask": path}
)

# Who may, and what was done -------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # administrator, engineer, reader, machine
    Column("password", Text, nullable=False, default=""),  # Argon2id; empty for those who come by OIDC or token only
    Column("issuer", Text, nullable=False, default=""),  # of OIDC
    Column("subject", Text, nullable=False, default=""),
    Column("language", String(8), nullable=False, default=""),
    Column("active", Boolean, nullable=False, default=True),
    Column("created_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Key, primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("used_at", Float),
    Column("revoked_at", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the cookie's value
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

#: Links that work once: the first administrator, a new user's first password.
links = Table(
    "links",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("purpose", String(32), nullable=False),  # first-administrator, set-password
    Column("user_id", ForeignKey("users.id")),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)

#: Each record holds the hash of the one before it: nothing can be changed or taken out unseen.
audit = Table(
    "audit",
    metadata,
    Column("number", Key, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False, index=True),
    Column("actor", Text, nullable=False),  # name of the user, AE title of a machine, "sagittal"
    Column("role", String(16), nullable=False, default=""),
    Column("address", Text, nullable=False, default=""),
    Column("action", String(32), nullable=False, index=True),
    Column("study_id", Key),
    Column("outcome", String(16), nullable=False, default="done"),  # done, refused, failed
    Column("details", JSON, nullable=False, default=dict),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

#: What an administrator should know: the PACS is away, the disk is full, a worker was stopped. One row a trouble.
events = Table(
    "events",
    metadata,
    Column("id", Key, primary_key=True),
    Column("code", String(64), nullable=False),
    Column("about", Text, nullable=False, default=""),  # destination, model, folder
    Column("level", String(8), nullable=False),  # info, warning, error
    Column("message", Text, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("count", Integer, nullable=False, default=1),
    Column("over_at", Float),
    Index(None, "over_at", "last_at"),
)

#: Switches that an administrator turns while the service runs: a model off, the queue paused.
switches = Table(
    "switches",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("changed_by", Text, nullable=False),
)

#: What must not happen twice, and clocks that must not go back.
marks = Table(
    "marks",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("value", JSON, nullable=False),
)
