"""API keys. Their SHA-256 is all that is kept: keys are long and random, so that no salt and no slow hash is needed.

A file of keys has a name and a hash on each line, `printf %s "$KEY" | sha256sum` makes the hash:

    # our keys
    search-team 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from rerank.data.files import read_lines
from rerank.errors import InputError

ENVIRONMENT = "RERANK_API_KEYS"
LEAST_LENGTH = 16
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names, each with the hash of a key. Without any everybody may ask."""

    hashes: tuple[tuple[str, bytes], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def who(self, authorization: str) -> str | None:
        """The name of the key in a header `Bearer KEY`, of which HTTP has a character for each byte; None for no key or
        a wrong one. All are compared, each in the same time, so that the time says nothing of them."""
        scheme, _, key = authorization.partition(" ")
        given = _hash(key.strip(" \t").encode("latin-1", "replace"))
        found = [name for name, known in self.hashes if hmac.compare_digest(known, given)]
        return found[0] if found and scheme.lower() == "bearer" else None

    def __add__(self, other: Keys) -> Keys:
        return Keys(self.hashes + other.hashes)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def from_file(path: str) -> Keys:
    """Raises InputError for a line that is no name and hash, which it does not repeat: it may be a key."""
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _HASH.fullmatch(words[1].lower()):
            raise InputError(
                f"{path}, line {number}: there should be a name and the SHA-256 of a key, in 64 hexadecimal digits, as "
                "'printf %s KEY | sha256sum' prints it"
            )
        found.append((words[0], bytes.fromhex(words[1])))
    if not found:
        raise InputError(f"{path} holds no key; give it a line with a name and the SHA-256 of a key")
    return Keys(tuple(found))


def from_environment(text: str) -> Keys:
    """Keys themselves, with commas between them; they are named by their places, key-1 and so on."""
    keys = [key.strip() for key in text.split(",") if key.strip()]
    for place, key in enumerate(keys, start=1):
        if len(key) < LEAST_LENGTH:
            raise InputError(
                f"{ENVIRONMENT}: key {place} has {len(key)} characters; give at least {LEAST_LENGTH}, as "
                "'openssl rand -hex 32' makes them"
            )
    return Keys(tuple((f"key-{place}", _hash(key.encode())) for place, key in enumerate(keys, start=1)))
