"""The tables. Times are Unix seconds (UTC) as doubles, structured values are JSON texts: the same on both databases.

A change here needs a migration beside it in `migrations/versions`; a test compares the two. On SQLite a table with a
textual key has no row id beside it: a commit then touches half as many pages.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

REVISION: Final = "0001"
"""The newest migration: a store at another revision is migrated, or refused if it is newer than this code."""

UNFINISHED: Final = "state NOT IN ('closed', 'cancelled', 'reinstated')"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row per gapless sequence: `denials` (text: the log's random id) and `audit` (text: the head's hash).
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Integer, nullable=False),
    Column("text", Text, nullable=False),
    sqlite_with_rowid=False,
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("source", String(128), nullable=False),
    Column("received_at", Double, nullable=False, index=True),
    Column("method", String(16), nullable=False),
    Column("headers", Text, nullable=False),  # without those that authenticate
    Column("body", LargeBinary, nullable=False),
)

# One row per statement of a delivery; `(source, key)` is what makes a second delivery harmless.
events = Table(
    "events",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("delivery_id", String(32), nullable=False),
    Column("source", String(128), nullable=False),
    Column("key", String(512), nullable=False),
    Column("kind", String(32), nullable=False),  # an EventKind, or ignored, learned, chore
    Column("vendor_type", String(128), nullable=False),
    Column("statement", Text, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("occurred_at", Double),
    Column("person_id", String(128)),
    Column("case_id", String(32)),
    Column("effect", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("pending", Boolean, nullable=False),  # waits for a job: a re-read, or a chore
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Double),
    Column("error", Text, nullable=False),
    UniqueConstraint("source", "key"),
    Index("ix_events_pending", "pending", sqlite_where=text("pending"), postgresql_where=text("pending")),
    Index("ix_events_person_id", "person_id"),
    sqlite_with_rowid=False,
)

people = Table(
    "people",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("protected", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    sqlite_with_rowid=False,
)

# The last thing each source said about a person. Somebody is gone while any source, or an operator, says so: an
# "enabled" from one directory doesn't outweigh a "disabled" from another, and late or repeated news changes nothing.
standings = Table(
    "standings",
    metadata,
    Column("person_id", String(128), ForeignKey("people.id"), primary_key=True),
    Column("source", String(128), primary_key=True),
    Column("gone", Boolean, nullable=False),
    Column("occurred_at", Double, nullable=False),
    sqlite_with_rowid=False,
)

aliases = Table(
    "aliases",
    metadata,
    Column("system", String(128), primary_key=True),
    Column("alias", String(512), primary_key=True),
    Column("person_id", String(128), ForeignKey("people.id"), nullable=False, index=True),
    Column("login", Boolean, nullable=False),  # a further exact name; the primary id has False
    Column("basis", Text, nullable=False),
    Column("learned_at", Double, nullable=False),
    sqlite_with_rowid=False,
)

emails = Table(
    "emails",
    metadata,
    Column("email", String(320), primary_key=True),
    Column("person_id", String(128), ForeignKey("people.id"), primary_key=True),
    Column("learned_at", Double, nullable=False),
    Index("ix_emails_person_id", "person_id"),
    sqlite_with_rowid=False,
)

cases = Table(
    "cases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("person_id", String(128), ForeignKey("people.id"), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("opened_by", Text, nullable=False),  # source:NAME, or the operator
    Column("opened_at", Double, nullable=False, index=True),
    Column("accepted_at", Double, nullable=False),  # the first byte of the delivery, or the command
    Column("denial_seq", Integer),
    Column("pushed_at", Double),
    Column("refused_at", Double),  # refused at every live replica
    Column("refused_by", Text, nullable=False),  # JSON: replica → applied | lease-expired
    Column("approved_by", Text, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("delete_due_at", Double),
    Index(
        "uq_cases_unfinished_person",
        "person_id",
        unique=True,
        sqlite_where=text(UNFINISHED),
        postgresql_where=text(UNFINISHED),
    ),
    sqlite_with_rowid=False,
)

targets = Table(
    "targets",
    metadata,
    Column("case_id", String(32), ForeignKey("cases.id"), primary_key=True),
    Column("connector", String(128), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("action", String(16), nullable=False),  # disable, delete or restore
    Column("runs", Integer, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("next_attempt_at", Double),
    Column("error", Text, nullable=False),
    Column("advice", Text, nullable=False),
    sqlite_with_rowid=False,
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("connector", String(128), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("scope", String(512), nullable=False),
    Column("vendor_id", String(1024), nullable=False),
    Column("owner", String(512), nullable=False),
    Column("person_id", String(128)),
    Column("label", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("snapshot", Text, nullable=False),
    Column("created_at", Double),
    Column("last_used_at", Double),
    Column("expires_at", Double),
    Column("first_seen_at", Double, nullable=False),
    Column("last_seen_at", Double, nullable=False),
    UniqueConstraint("connector", "kind", "scope", "vendor_id"),
    Index("ix_credentials_person_id", "person_id"),
    sqlite_with_rowid=False,
)

# What a case is responsible for: recorded before the vendor is called, so that a crash leaves no credential behind.
case_credentials = Table(
    "case_credentials",
    metadata,
    Column("case_id", String(32), ForeignKey("cases.id"), primary_key=True),
    Column("credential_id", String(32), ForeignKey("credentials.id"), primary_key=True),
    Column("state_before", String(16), nullable=False),
    Column("disabled_by_us", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

evidence = Table(
    "evidence",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("case_id", String(32), ForeignKey("cases.id"), nullable=False),
    Column("credential_id", String(32), ForeignKey("credentials.id"), nullable=False),
    Column("action", String(16), nullable=False),
    Column("strength", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("requested_at", Double, nullable=False),
    Column("acknowledged_at", Double),
    Column("verified_at", Double),
    Column("attempts", Integer, nullable=False),
    Column("method", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("advice", Text, nullable=False),
    Column("residual_until", Double),
    Column("residual_note", Text, nullable=False),
    Column("latest", Boolean, nullable=False),
    Index("ix_evidence_case_id", "case_id"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("case_id", String(32), ForeignKey("cases.id"), nullable=False, index=True),
    Column("credential_id", String(32), nullable=False),
    Column("connector", String(128), nullable=False),
    Column("title", Text, nullable=False),
    Column("advice", Text, nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("done_at", Double),
    Column("done_by", Text, nullable=False),
    Column("note", Text, nullable=False),
    sqlite_with_rowid=False,
)

denials = Table(
    "denials",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("facts", Text, nullable=False),
    Column("effect", String(16), nullable=False),  # deny, cut or lift
    Column("person_id", String(128)),
    Column("case_id", String(32)),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

# The denial log folded: the current value of each fact.
denial_facts = Table(
    "denial_facts",
    metadata,
    Column("key", String(1024), primary_key=True),
    Column("denied", Boolean, nullable=False),
    Column("before", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("seq", Integer, nullable=False),
    sqlite_with_rowid=False,
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),
    Column("what", String(64), nullable=False),
    Column("who", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("key", String(32), primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("at", String(40), nullable=False),
    Column("signature", Text, nullable=False),
)

# Where a source's catch-up stands, and what is the matter with a connector.
cursors = Table(
    "cursors",
    metadata,
    Column("source", String(128), primary_key=True),
    Column("cursor", Text, nullable=False),
    Column("at", Double, nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("connector", String(128), primary_key=True),
    Column("error", Text, nullable=False),
    Column("advice", Text, nullable=False),
    Column("since", Double, nullable=False),
)
