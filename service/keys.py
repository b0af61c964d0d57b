"""The keys of a gateway: what a file of them says, and whose a secret is. Secrets themselves are kept nowhere.

At rest there is the SHA-256 of each key. That is enough, and a slow hash for passwords would be wrong: a key is 256
random bits of our own making, so there is nothing to guess, and a slow hash would make every request expensive.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.batching import Lane
from service.errors import KeysError

# Easy to find for scanners of leaked secrets.
SECRET_PREFIX = "me5_"
RANDOM_BYTES = 32
# Longer ones are nobody's, and not worth a hash.
SECRET_BYTES_MAX = 512
# Of a key that somebody made up.
SECRET_CHARS_MIN = 16
# Each key has series of its own in /metrics.
KEYS_MAX = 1000
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A key of our making, or most of one, pasted where it does not belong.
SECRET = re.compile(re.escape(SECRET_PREFIX) + r"[A-Za-z0-9_-]{32,}")
# Far beyond what any engine computes in a minute, and still exact in a float.
TOKENS_MAX = 10**12

_NOBODY = bytes(32)
# What a moment in UTC can be, for those that a zone puts beyond it.
_FIRST = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


class Entry(BaseModel):
    """One table of the file: [NAME], and these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tokens_per_minute: int | None = Field(None, ge=1, le=TOKENS_MAX)
    burst_tokens: int | None = Field(None, ge=1, le=TOKENS_MAX)
    lane: Lane | None = None
    expires: date | datetime | None = None
    disabled: bool = False


@dataclass(frozen=True)
class Key:
    """digest: SHA-256 of the secret.   burst_tokens: 0 without a limit.   expires: Unix time, or None.

    lane: the only one its requests may use.
    """

    name: str
    digest: bytes
    tokens_per_minute: int | None = None
    burst_tokens: int = 0
    lane: Lane | None = None
    expires: float | None = None
    disabled: bool = False

    def describe(self, now: float) -> str:
        """One line for people, at this Unix time."""
        limit = f"{self.tokens_per_minute} tokens a minute, {self.burst_tokens} at once"
        parts = [limit if self.tokens_per_minute else "no limit", f"lane {self.lane}" if self.lane else "any lane"]
        if self.expires is not None:
            until = datetime.fromtimestamp(self.expires, UTC).isoformat(" ", "minutes").removesuffix("+00:00")
            parts.append(f"{'expired' if self.has_expired(now) else 'valid until'} {until} UTC")
        if self.disabled:
            parts.append("disabled")
        return f"{self.name}: {', '.join(parts)}"

    def has_expired(self, now: float) -> bool:
        """Whether its time is over at this Unix time."""
        return self.expires is not None and now >= self.expires


class Keyring:
    """Keys by what their secrets hash to."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)
        self._by_digest = {key.digest: key for key in self.keys}

    def find(self, secret: bytes) -> Key | None:
        """The key with this secret.

        How long it takes says nothing of the keys there are: what is looked up is a hash, whose bits nobody can choose,
        and the hash found, or one of nobody, is compared in constant time.
        """
        if len(secret) > SECRET_BYTES_MAX:
            return None
        digest = digest_of(secret)
        key = self._by_digest.get(digest)
        same = hmac.compare_digest(digest, _NOBODY if key is None else key.digest)
        return key if same else None


def digest_of(secret: bytes) -> bytes:
    """SHA-256 of a secret."""
    return hashlib.sha256(secret).digest()


def new_secret() -> str:
    """A key nobody can guess."""
    return SECRET_PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def parse_keys(text: str) -> tuple[Key, ...]:
    """The keys of a file. Raises KeysError with the key and the field, never with the value of a secret."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # A table that is there twice is named.
        raise KeysError(f"not TOML: {_hidden(str(error))}") from None
    if len(tables) > KEYS_MAX:
        raise KeysError(f"{len(tables)} keys, at most {KEYS_MAX} are taken")
    keys = tuple(_key(name, table) for name, table in tables.items())
    seen: dict[bytes, str] = {}
    for key in keys:
        if (other := seen.setdefault(key.digest, key.name)) != key.name:
            raise KeysError(f"{other} and {key.name} are one and the same key; remove one of them")
    return keys


def plain_keys(values: str) -> tuple[Key, ...]:
    """The keys of ME5_API_KEY: one, or several between commas, named api-key, api-key-2 and so on.

    Raises ValueError, without the value.
    """
    found = [value.strip() for value in values.split(",")]
    if any(len(value) < SECRET_CHARS_MIN or not re.fullmatch("[!-~]+", value) for value in found):
        raise ValueError(
            f"a key needs {SECRET_CHARS_MIN} or more visible ASCII characters; `openssl rand -hex 24` makes one"
        )
    if len(set(found)) < len(found):
        raise ValueError("a key is given twice")
    names = ("api-key" if number == 1 else f"api-key-{number}" for number in range(1, len(found) + 1))
    return tuple(Key(name, digest_of(value.encode("ascii"))) for name, value in zip(names, found, strict=True))


def with_key(text: str, name: str, entry: Entry) -> str:
    """The file's text with one more key. Raises KeysError where there is one of that name."""
    if any(key.name == name for key in parse_keys(text)):
        raise KeysError(f"there is a key {name} already; remove it first, or choose another name")
    lines = [f"[{name}]"]
    for field, value in entry.model_dump(exclude_defaults=True).items():
        lines.append(f"{field} = {_toml(value)}")
    before = text if not text or text.endswith("\n") else text + "\n"
    found = before + ("\n" if before else "") + "\n".join(lines) + "\n"
    parse_keys(found)
    return found


def without_key(text: str, name: str) -> str:
    """The file's text without a key: without the lines from its [NAME] to the next table. Raises KeysError."""
    keys = parse_keys(text)
    if all(key.name != name for key in keys):
        raise KeysError(f"no key {_hidden(name)}; there are {', '.join(key.name for key in keys) or 'none'}")
    kept: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = line.split("#")[0].strip().strip("[]").strip().strip("\"'") == name
        if not inside:
            kept.append(line)
    found = "".join(kept)
    if parse_keys(found) != tuple(key for key in keys if key.name != name):
        raise KeysError(f"{name} is not written as a table [{name}]; remove it by hand")
    return found


def entry_of(name: str, table: object) -> Entry:
    """One table of the file, checked. Raises KeysError."""
    if SECRET.search(name):
        raise KeysError(
            f"{_hidden(name)[:80]!r} looks like a key itself, and names are shown; choose another name, "
            "and replace the key"
        )
    if not NAME.fullmatch(name):
        raise KeysError(f"{name[:80]!r} is no name for a key; use letters, digits, - and _, at most 64")
    if not isinstance(table, Mapping):
        raise KeysError(f"{name} must be a table: [{name}], and below it sha256 = …")
    try:
        entry = Entry.model_validate(dict(table))
    except ValidationError as error:
        problems = (f"{_hidden(str(item['loc'][0]))}: {item['msg'].lower()}" for item in error.errors())
        raise KeysError(f"{name}: {'; '.join(problems)}") from error
    if entry.burst_tokens and not entry.tokens_per_minute:
        raise KeysError(f"{name}: burst_tokens needs tokens_per_minute")
    return entry


def _key(name: str, table: object) -> Key:
    entry = entry_of(name, table)
    return Key(
        name=name,
        digest=bytes.fromhex(entry.sha256),
        tokens_per_minute=entry.tokens_per_minute,
        burst_tokens=entry.burst_tokens or entry.tokens_per_minute or 0,
        lane=entry.lane,
        expires=None if entry.expires is None else _unix(entry.expires),
        disabled=entry.disabled,
    )


def _hidden(text: str) -> str:
    """The text without what looks like a key."""
    return SECRET.sub(f"{SECRET_PREFIX}…", text)


def _unix(moment: datetime | date) -> float:
    """The last moment of a day; without a zone it is UTC, whatever the machine's own."""
    if not isinstance(moment, datetime):
        return datetime(moment.year, moment.month, moment.day, 23, 59, 59, tzinfo=UTC).timestamp()
    found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return min(max(found, _FIRST), _LAST)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, int) else f'"{value}"'
