"""The proxy's own signing keys: Ed25519, one PEM file per key id in a folder that only its owner reads.

The newest key signs, all verify: rotation is adding a file, and retiring is deleting one (which kills what it signed).
A file may hold a public key alone: then it only verifies. The key id is the file's name, made of the time of its
creation and of the key's thumbprint (RFC 7638). This file knows nothing of tokens or of HTTP.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from offboard_worker.errors import ConfigError

ADVICE = "Keep one Ed25519 key in PEM per file, mode 0600; with the folder empty the proxy makes one itself."


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """One key. `private` is None where only the public half lies in the folder."""

    kid: str
    public: Ed25519PublicKey
    private: Ed25519PrivateKey | None

    def __repr__(self) -> str:
        return f"SigningKey({self.kid})"

    def jwk(self) -> dict[str, str]:
        """The public key as a JWK (RFC 8037)."""
        return {**_okp(self.public), "kid": self.kid, "use": "sig", "alg": "EdDSA"}


class SigningKeys:
    """The folder's keys, newest last. Read again when the folder has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = 0
        self._keys: dict[str, SigningKey] = {}
        self.reload()

    @property
    def by_kid(self) -> Mapping[str, SigningKey]:
        return self._keys

    def reload(self) -> bool:
        """Read the folder if it has changed since; say whether the keys are others now. Raises ConfigError."""
        try:
            mark = self._folder.stat().st_mtime_ns
        except OSError as error:
            raise ConfigError(f"signing keys: {self._folder} can't be read: {error.strerror}", advice=ADVICE) from error
        if mark == self._mark:
            return False
        keys = {path.stem: _read(path) for path in sorted(self._folder.glob("*.pem"))}
        changed = keys.keys() != self._keys.keys()
        self._keys, self._mark = keys, mark
        return changed

    def signer(self) -> SigningKey:
        """The newest key that can sign. Raises ConfigError."""
        for key in reversed(self._keys.values()):
            if key.private is not None:
                return key
        raise ConfigError(f"signing keys: {self._folder} holds no private key", advice=ADVICE)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public key set, newest first."""
        return {"keys": [key.jwk() for key in reversed(self._keys.values())]}


def ensure_signing_key(folder: Path) -> SigningKeys:
    """Open the folder, and make the first key where there is none. Safe when several processes start at once."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(folder.glob("*.pem")):
            new_signing_key(folder)
        return SigningKeys(folder)
    finally:
        os.close(lock)


def new_signing_key(folder: Path) -> str:
    """Write one new key, which signs from now on, and return its id."""
    private = Ed25519PrivateKey.generate()
    kid = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{_thumbprint(private.public_key())[:12]}"
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    unfinished = folder / f".{kid}.new"
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, pem)
        os.fsync(file)
    finally:
        os.close(file)
    unfinished.rename(folder / f"{kid}.pem")
    return kid


def _read(path: Path) -> SigningKey:
    try:
        pem = path.read_bytes()
        if b"PUBLIC KEY" in pem:
            public = serialization.load_pem_public_key(pem)
            if isinstance(public, Ed25519PublicKey):
                return SigningKey(path.stem, public, None)
            raise ValueError("not Ed25519")
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"signing keys: {path} can be read by others than its owner", advice=f"chmod 600 {path}")
        private = serialization.load_pem_private_key(pem, None)
        if isinstance(private, Ed25519PrivateKey):
            return SigningKey(path.stem, private.public_key(), private)
        raise ValueError("not Ed25519")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"signing keys: {path} holds no Ed25519 key in PEM", advice=ADVICE) from error


def _okp(public: Ed25519PublicKey) -> dict[str, str]:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}


def _thumbprint(public: Ed25519PublicKey) -> str:
    canonical = json.dumps(_okp(public), separators=(",", ":"), sort_keys=True).encode()
    return base64.b32encode(hashlib.sha256(canonical).digest()).decode().lower()
