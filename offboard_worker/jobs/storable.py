"""Statements in a form that both databases take: one that they refuse would take its whole batch along.

PostgreSQL takes no NUL character, and columns have their greatest length (store/schema.py): a longer name becomes its
own SHA-256, so that the same name stays the same and another stays another. Knows nothing of what a statement leads to.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from urllib.parse import quote

from offboard_worker.core.event import IdentityEvent, Ignored
from offboard_worker.core.person import Subject
from offboard_worker.sources.source import Learned, Statement

KEY, VENDOR_TYPE, ALIAS, EMAIL = 512, 128, 512, 320
QUOTED = 640
"""How much of a denial's key (1024) a name may take; the rest is the issuer's."""


def storable(statement: Statement) -> Statement:
    """Return the statement itself, or a copy that fits."""
    key = _fit(statement.key, KEY)
    if key != statement.key:
        statement = replace(statement, key=key)
    if isinstance(statement, IdentityEvent | Learned | Ignored):
        vendor_type = _fit(statement.vendor_type, VENDOR_TYPE)
        if vendor_type != statement.vendor_type:
            statement = replace(statement, vendor_type=vendor_type)
    if isinstance(statement, IdentityEvent | Learned):
        subject = _subject(statement.subject)
        if subject != statement.subject:
            statement = replace(statement, subject=subject)
    if isinstance(statement, Ignored) and "\0" in statement.reason:
        statement = replace(statement, reason=_without_nul(statement.reason))
    return statement


def _subject(subject: Subject) -> Subject:
    return Subject(
        subject.system,
        None if subject.id is None else _name(subject.id, ALIAS),
        tuple(_name(email, EMAIL) for email in subject.emails),
        tuple(_name(login, ALIAS) for login in subject.logins),
        _without_nul(subject.name),
    )


def _without_nul(text: str) -> str:
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _name(text: str, longest: int) -> str:
    """Fit an id, login or address. A denial's key percent-encodes it: up to twelve characters for one, and has room."""
    if len(text) * 12 > QUOTED and len(quote(text)) > QUOTED:
        longest = 0
    return _fit(text, longest)


def _fit(text: str, longest: int) -> str:
    text = _without_nul(text)
    return text if len(text) <= longest else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
