"""What a site keeps to itself, encrypted at rest with the site's key: AES-256-GCM (NIST SP 800-38D).

Layout of encrypted bytes: magic (10 bytes, the last one the schema), key id (4), nonce (12), ciphertext with
tag. Magic, key id and the caller's context are authenticated, so that what was encrypted for one purpose
cannot be put in the place of another.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedprompt.artifacts import arrays_from_bytes, arrays_to_bytes, write_atomic
from fedprompt.errors import ConfigurationError, DataError
from fedprompt.manifest import Arrays

__all__ = ["SiteKey", "read_encrypted_arrays", "write_encrypted_arrays"]

_MAGIC = b"fedprompt\x01"  # the last byte is the schema
_PREFIX = "fedprompt-site-key-1:"
_KEY = 32  # bytes
_ID = 4
_NONCE = 12
_TAG = 16
_HEADER = len(_MAGIC) + _ID


class SiteKey:
    """The key of one site; whoever has it can read what the site keeps.

    Nonces are random, so one key is good for 2**32 encryptions.

    Args:
        secret: 32 random bytes.

    Attributes:
        id: Eight hex digits that name the key and say nothing about it.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _KEY:
            raise ValueError(f"expected a key of {_KEY} bytes, got {len(secret)}")
        self._cipher = AESGCM(_derived(secret, b"encryption"))
        self.id = hashlib.sha256(_derived(secret, b"identity")).hexdigest()[: 2 * _ID]

    def __repr__(self) -> str:
        return f"SiteKey(id={self.id!r})"

    @classmethod
    def create(cls, path: Path) -> Self:
        """Draws a new key and writes it to a new file for its user alone.

        Raises:
            ConfigurationError: There is a file already, or it cannot be written.
        """
        secret = secrets.token_bytes(_KEY)
        line = f"{_PREFIX}{base64.b64encode(secret).decode()}\n"
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise ConfigurationError(f"{path}: expected no file, got one; a key is never overwritten")
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(partial)  # the whole key under its name, and never over one that just came
        except OSError as error:
            raise ConfigurationError(f"{path}: the key cannot be written ({error.strerror})") from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return cls(secret)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `create` wrote.

        Raises:
            ConfigurationError: The file is missing, others than its user may use it, or it holds no key.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(1024)
        except FileNotFoundError:
            raise ConfigurationError(f"{path}: no such file; expected the site's key") from None
        except OSError as error:
            raise ConfigurationError(f"{path}: the key cannot be read ({error.strerror})") from None
        if mode & 0o077:
            raise ConfigurationError(
                f"{path}: expected a key file for its user alone (mode 600), got mode {mode:o}"
            )
        try:
            prefix, text = content[: len(_PREFIX)], content[len(_PREFIX) :].strip()
            secret = base64.b64decode(text, validate=True)
        except binascii.Error:
            secret = b""
        if prefix != _PREFIX.encode() or len(secret) != _KEY:
            raise ConfigurationError(
                f"{path}: expected one line, {_PREFIX} and 32 bytes as base64, got other text"
            )
        return cls(secret)

    def encrypt(self, plain: bytes, context: bytes) -> bytes:
        """Encrypts `plain`; only who names the same context can decrypt it."""
        header = _MAGIC + bytes.fromhex(self.id)
        nonce = secrets.token_bytes(_NONCE)
        return header + nonce + self._cipher.encrypt(nonce, plain, header + context)

    def decrypt(self, sealed: bytes, context: bytes, *, where: str = "encrypted content") -> bytes:
        """Decrypts what `encrypt` gave.

        Args:
            sealed: Encrypted bytes.
            context: That they were encrypted with.
            where: They come from, for the error.

        Raises:
            DataError: They are no encrypted bytes, of another key, changed, or of another context.
        """
        if sealed[: len(_MAGIC)] != _MAGIC or len(sealed) < _HEADER + _NONCE + _TAG:
            raise DataError(f"{where}: expected content that fedprompt encrypted, got other or cut off bytes")
        header, nonce = sealed[:_HEADER], sealed[_HEADER : _HEADER + _NONCE]
        found = header[len(_MAGIC) :].hex()
        if found != self.id:
            raise DataError(f"{where}: wrong key; expected content of key {self.id}, got that of key {found}")
        try:
            return self._cipher.decrypt(nonce, sealed[_HEADER + _NONCE :], header + context)
        except InvalidTag:
            raise DataError(
                f"{where}: the encrypted content was damaged, changed, or put in the place of another"
            ) from None


def write_encrypted_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    key: SiteKey,
    *,
    durable: bool = False,
) -> None:
    """Writes named arrays and JSON metadata encrypted; the file can be read under its own name alone."""
    sealed = key.encrypt(arrays_to_bytes(arrays, metadata), _context(path))
    write_atomic(path, sealed, durable=durable)


def read_encrypted_arrays(path: Path, key: SiteKey) -> tuple[Arrays, dict[str, Any]]:
    """Reads what `write_encrypted_arrays` wrote: arrays and metadata.

    Raises:
        DataError: The file is missing, of another key, damaged, or was written under another name.
    """
    try:
        sealed = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return arrays_from_bytes(key.decrypt(sealed, _context(path), where=str(path)), str(path))


def _context(path: Path) -> bytes:
    return b"arrays/" + os.fsencode(path.name)


def _derived(secret: bytes, purpose: bytes) -> bytes:
    """32 bytes that only who has the secret can compute, other ones for every purpose."""
    return hmac.digest(secret, b"fedprompt-site-key-1/" + purpose, "sha256")
