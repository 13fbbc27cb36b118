"""The audit's hash chain: SHA-256 over RFC 8785 canonical JSON, and Ed25519 checkpoints over its head.

Each record's hash covers its content and the hash before it, so that changing, dropping or reordering any record
shows; a signed checkpoint that went off the box shows a tail that was cut off. No I/O.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any, Final

import rfc8785

from offboard_worker.errors import AuditBroken

if TYPE_CHECKING:  # 8 MB that the receiver, which signs nothing, doesn't need
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GENESIS: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record. `at` is an RFC 3339 UTC text, so that the hash never depends on a clock's representation."""

    seq: int
    at: str
    what: str
    who: str
    subject: str
    detail: Mapping[str, Any]
    previous: str
    hash: str

    def content(self) -> dict[str, Any]:
        """What the hash covers."""
        return {
            "seq": self.seq,
            "at": self.at,
            "what": self.what,
            "who": self.who,
            "subject": self.subject,
            "detail": dict(self.detail),
            "previous": self.previous,
        }

    def export(self) -> dict[str, Any]:
        return {**self.content(), "hash": self.hash}


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(content)).hexdigest()


class _Uncommon(Exception):
    """A value that only the full implementation of RFC 8785 writes."""


def canonical(value: Any) -> bytes:
    """Write a JSON value as RFC 8785 says."""
    return canonical_text(value).encode()


def canonical_text(value: Any) -> str:
    """Write a JSON value as RFC 8785 says, as text. Texts and whole numbers, all that the audit holds, are quick."""
    try:
        text = _plain(value)
        if text.isascii():
            return text
        text.encode()  # lone surrogates are refused below, as the RFC asks
    except (_Uncommon, UnicodeEncodeError, TypeError):
        return rfc8785.dumps(dict(value) if isinstance(value, Mapping) else value).decode()
    return text


def _plain(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is dict:
        if not all(map(str.isascii, value)):
            raise _Uncommon  # other names are sorted by their UTF-16 units
        members = [
            f"{_quoted(name)}:{_quoted(item) if type(item) is str else _plain(item)}"
            for name, item in sorted(value.items())
        ]
        return "{" + ",".join(members) + "}"
    if kind is list or kind is tuple:
        return "[" + ",".join([_plain(item) for item in value]) + "]"
    if value is True or value is False:
        return "true" if value else "false"
    if kind is int and -(2**53) < value < 2**53:
        return str(value)
    raise _Uncommon


def seal(seq: int, before: str, at: str, what: str, who: str, subject: str, detail: str) -> str:
    """Return the hash of the record `seq` whose detail is this canonical text and which follows the hash `before`."""
    content = (
        f'{{"at":{_quoted(at)},"detail":{detail},"previous":{_quoted(before)},"seq":{seq},'
        f'"subject":{_quoted(subject)},"what":{_quoted(what)},"who":{_quoted(who)}}}'
    )
    try:
        return hashlib.sha256(content.encode()).hexdigest()
    except UnicodeEncodeError:
        raise rfc8785.CanonicalizationError("an audit record holds a lone surrogate") from None


def link(
    previous: AuditRecord | None, at: str, what: str, who: str, subject: str, detail: Mapping[str, Any]
) -> AuditRecord:
    """Return the record that follows `previous` (None for the first)."""
    seq, before = (1, GENESIS) if previous is None else (previous.seq + 1, previous.hash)
    return link_after(seq - 1, before, at, what, who, subject, detail)


def link_after(
    seq: int, before: str, at: str, what: str, who: str, subject: str, detail: Mapping[str, Any]
) -> AuditRecord:
    """Return the record after number `seq` whose hash is `before`."""
    sealed = seal(seq + 1, before, at, what, who, subject, canonical_text(detail))
    return AuditRecord(seq + 1, at, what, who, subject, detail, before, sealed)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement: "record `seq` had this hash at this time"."""

    seq: int
    hash: str
    at: str
    key: str  # the public key's fingerprint
    signature: str  # base64

    def content(self) -> bytes:
        return rfc8785.dumps({"seq": self.seq, "hash": self.hash, "at": self.at, "key": self.key})

    def export(self) -> dict[str, Any]:
        return {"seq": self.seq, "hash": self.hash, "at": self.at, "key": self.key, "signature": self.signature}


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the first 16 hex digits of the SHA-256 of the raw public key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def sign(seq: int, head: str, at: str, key: Ed25519PrivateKey) -> Checkpoint:
    """Sign a checkpoint."""
    unsigned = Checkpoint(seq, head, at, fingerprint(key.public_key()), "")
    signature = base64.b64encode(key.sign(unsigned.content())).decode()
    return Checkpoint(seq, head, at, unsigned.key, signature)


def _digest_or_none(content: Mapping[str, Any]) -> str | None:
    """As `digest`; None for a content that no record of ours can have (a float that is no number, a lone surrogate)."""
    try:
        return digest(content)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return None


def verify_chain(records: Iterable[AuditRecord]) -> Iterator[AuditRecord]:
    """Yield each record once it is verified. Raises AuditBroken at the first that doesn't follow."""
    seq, before = 0, GENESIS
    for record in records:
        if record.seq != seq + 1:
            raise AuditBroken(f"audit record {seq + 1} is missing: the next one is {record.seq}")
        if record.previous != before:
            raise AuditBroken(f"audit record {record.seq} doesn't follow record {seq}: the hash before it differs")
        if _digest_or_none(record.content()) != record.hash:
            raise AuditBroken(f"audit record {record.seq} was altered: its content doesn't have the recorded hash")
        seq, before = record.seq, record.hash
        yield record


def verify_checkpoints(
    checkpoints: Iterable[Checkpoint], hashes: Mapping[int, str], keys: Mapping[str, Ed25519PublicKey]
) -> int:
    """Check each checkpoint against the chain and its key; return how many. Raises AuditBroken.

    `hashes` maps seq → hash of the verified chain. A checkpoint beyond the chain's end means that the tail was cut.
    """
    from cryptography.exceptions import InvalidSignature

    count = 0
    for checkpoint in checkpoints:
        key = keys.get(checkpoint.key)
        if key is None:
            raise AuditBroken(
                f"the checkpoint at record {checkpoint.seq} is signed by key {checkpoint.key}, which is not trusted",
                advice="Pass the public key that was in use then with --public-key.",
            )
        try:
            key.verify(base64.b64decode(checkpoint.signature, validate=True), checkpoint.content())
        except (InvalidSignature, ValueError) as error:
            raise AuditBroken(f"the checkpoint at record {checkpoint.seq} has a false signature") from error
        if checkpoint.seq and hashes.get(checkpoint.seq) != checkpoint.hash:
            what = "was rewritten" if checkpoint.seq in hashes else "is missing: the tail was cut off"
            raise AuditBroken(f"audit record {checkpoint.seq}, which a checkpoint vouches for, {what}")
        count += 1
    return count
