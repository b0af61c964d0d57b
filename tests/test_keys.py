"""Keys: what a file of them may say, what it never holds, and how a secret is found."""

from __future__ import annotations

import hmac
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gateway_process import run_service

from service.callers import Callers
from service.errors import Forbidden, KeysError, OverBurst, Overloaded, RateLimited, ShuttingDown, Unauthorized
from service.keys import Key, Keyring, digest_of, entry_of, new_secret, parse_keys, plain_keys, with_key, without_key
from service.keys_file import HEADING, rewrite, write_file
from service.metrics import KeyMetrics, Metrics

HASH = "ab" * 32
OTHER = "cd" * 32


def callers(*keys: Key, now: float = 0.0) -> Callers:
    """These keys in force."""
    found = Callers((), KeyMetrics(Metrics().registry), now)
    found.use(keys, now)
    return found


def key(name: str, secret: bytes = b"secret", **more: object) -> Key:
    """A key of this secret."""
    return Key(name, digest_of(secret), **more)  # type: ignore[arg-type]


def test_a_file_says_all_that_a_key_may() -> None:
    (found,) = parse_keys(
        f'[search]\nsha256 = "{HASH}"\ntokens_per_minute = 600\nburst_tokens = 90\nlane = "bulk"\n'
        "expires = 2027-01-31\ndisabled = true\n"
    )
    last_moment = datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert found == Key("search", bytes.fromhex(HASH), 600, 90, "bulk", last_moment, True)


def test_without_a_burst_those_of_a_minute_may_come_at_once() -> None:
    (found,) = parse_keys(f'[a]\nsha256 = "{HASH}"\ntokens_per_minute = 600\n')
    assert found.burst_tokens == 600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a", "not TOML"),
        ("a = 1", "a must be a table"),
        ("x = " + "[" * 5000, "not TOML"),
        ("x = " + "9" * 5000, "not TOML"),
        ("[a]\n", "a: sha256: field required"),
        ('[a]\nsha256 = "me5_secret"\n', "a: sha256: string should match"),
        (f'[a]\nsha256 = "{HASH}"\ntoken_per_minute = 1\n', "a: token_per_minute: extra"),
        (f'[a]\nsha256 = "{HASH}"\ntokens_per_minute = 0\n', "a: tokens_per_minute: .*greater"),
        (
            f'[a]\nsha256 = "{HASH}"\ntokens_per_minute = 1{"0" * 400}\n',
            "a: tokens_per_minute: .*less .* 1000000000000$",
        ),
        (f'[a]\nsha256 = "{HASH}"\ntokens_per_minute = 1\nburst_tokens = {10**12 + 1}\n', "a: burst_tokens: .*less"),
        (f'[a]\nsha256 = "{HASH}"\nburst_tokens = 5\n', "burst_tokens needs tokens_per_minute"),
        (f'[a]\nsha256 = "{HASH}"\nlane = "fast"\n', "a: lane: .*'interactive' or 'bulk'"),
        (f'[a]\nsha256 = "{HASH}"\nexpires = "soon"\n', "a: expires"),
        (f'["a b"]\nsha256 = "{HASH}"\n', "'a b' is no name"),
        (f'[a]\nsha256 = "{HASH}"\n[b]\nsha256 = "{HASH}"\n', "a and b are one and the same key"),
        ("".join(f'[k{n}]\nsha256 = "{n:064x}"\n' for n in range(1001)), "1001 keys, at most 1000"),
    ],
)
def test_what_a_file_can_not_say_is_refused_with_the_key_and_the_field(text: str, says: str) -> None:
    with pytest.raises(KeysError, match=says) as raised:
        parse_keys(text)
    assert "me5_secret" not in str(raised.value)


def test_a_secret_is_found_by_its_hash_and_compared_in_constant_time_whether_there_is_one_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append(len(one) + len(other))
        return whole(one, other)

    whole = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", watched)
    ring = Keyring([key("a", b"one"), key("b", b"two")])
    assert [found and found.name for found in map(ring.find, [b"one", b"two", b"three", b""])] == ["a", "b", None, None]
    assert compared == [64] * 4


def test_a_key_of_nobody_is_not_the_one_whose_hash_is_zeros() -> None:
    assert Keyring([]).find(b"anything") is None
    assert Keyring([Key("zeros", bytes(32))]).find(b"anything") is None


def test_two_keys_of_our_own_making_differ_and_hold_256_random_bits() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("me5_") and len(secret) == 4 + 43 for secret in made)


def test_plain_keys_are_one_or_several_between_commas() -> None:
    first, second = "a" * 16, "b" * 20
    assert [found.name for found in plain_keys(f"{first}, {second}")] == ["api-key", "api-key-2"]
    assert Keyring(plain_keys(first)).find(first.encode()) is not None


def test_a_key_is_added_and_removed_without_touching_the_others() -> None:
    text = f'# ours\n[a]\nsha256 = "{HASH}" # the first\n\n["b"] # quoted\nsha256 = "{OTHER}"\n'
    more = with_key(text, "c", entry_of("c", {"sha256": "ef" * 32, "lane": "bulk", "expires": "2027-01-31"}))
    assert more.startswith(text)
    assert [found.name for found in parse_keys(more)] == ["a", "b", "c"]
    assert without_key(without_key(more, "b"), "c").strip() == text[: text.index('["b"]')].strip()
    with pytest.raises(KeysError, match="there is a key a already"):
        with_key(text, "a", entry_of("a", {"sha256": "ef" * 32}))
    with pytest.raises(KeysError, match="no key z; there are a, b"):
        without_key(text, "z")


def test_a_key_that_is_not_written_as_a_table_is_left_for_a_person() -> None:
    with pytest.raises(KeysError, match="remove it by hand"):
        without_key(f'a.sha256 = "{HASH}"\n', "a")


def test_missing_unknown_disabled_and_expired_keys_are_refused_and_counted_apart() -> None:
    found = callers(key("gone", b"1", disabled=True), key("late", b"2", expires=100.0), key("good", b"3"))
    for secret, says in (
        (None, "no API key"),
        (b"x", "not known"),
        (b"1", "gone is disabled"),
        (b"2", "late is expired"),
    ):
        with pytest.raises(Unauthorized, match=says) as raised:
            found.identify(secret, 100.0)
        ((name, value),) = raised.value.headers
        assert name == b"www-authenticate"
        assert (b'error="invalid_token"' in value) == (secret is not None)
    assert found.identify(b"2", 99.9).name == "late"
    assert found.identify(b"3", 1e12).name == "good"
    counted = {
        sample.labels["reason"]: sample.value
        for family in found.metrics.unauthorized.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert counted == {"missing": 1, "unknown": 1, "disabled": 1, "expired": 1}


def test_what_a_key_may_use_is_refused_with_when_and_only_waiting_that_helps_is_advised() -> None:
    found = callers(key("a", b"1", tokens_per_minute=60, burst_tokens=100)).identify(b"1", 0)
    found.charge(80, 0.0)
    with pytest.raises(RateLimited, match="17 are left, this request has 50; try again in 33 s") as raised:
        found.charge(50, 0.0)
    assert raised.value.retry_after_s == 33
    with pytest.raises(RateLimited):
        found.expect(18, 0, 0.0)
    with pytest.raises(OverBurst, match="100 at once; this request has 101 or more"):
        found.expect(1, 404, 0.0)
    # Not even its least is there; what it is likely to have will be in 43 s.
    with pytest.raises(RateLimited, match="17 are left, this request has 18 or more; try again in 43 s") as raised:
        found.expect(18, 60, 0.0)
    assert raised.value.retry_after_s == 43
    found.expect(17, 60, 0.0)
    assert OverBurst.status == 413
    headers = dict(found.headers(0.0))
    assert headers[b"x-ratelimit-limit-tokens"] == b"100"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"17"
    assert headers[b"x-ratelimit-reset-tokens"] == b"1m23s"


def test_what_is_refused_after_it_was_tokenised_is_not_free() -> None:
    found = callers(key("a", b"1", tokens_per_minute=60, burst_tokens=100)).identify(b"1", 0)
    assert found.bucket is not None
    with pytest.raises(OverBurst):
        found.charge(101, 0.0)
    assert found.bucket.remaining(0.0) == 0
    # Refused from now on before any work: even a token is more than is left.
    with pytest.raises(RateLimited):
        found.expect(1, 0, 0.0)
    # Clients that try again together get a turn: what each is refused for costs it little.
    for _ in range(3):
        with pytest.raises(RateLimited):
            found.charge(64, 50.0)
    assert found.bucket.remaining(50.0) == 50 - 3 * 4


def test_tokens_of_a_request_that_the_server_failed_are_given_back_and_those_of_the_clients_own_end_are_not() -> None:
    from service.errors import DeadlineExceeded

    found = callers(key("a", b"1", tokens_per_minute=60, burst_tokens=100)).identify(b"1", 0)
    assert found.bucket is not None
    found.charge(60, 0.0)
    found.refund(60, DeadlineExceeded(waiting=1, total=1), 0.0)
    assert found.bucket.remaining(0.0) == 40
    found.refund(60, ShuttingDown("ends"), 0.0)
    assert found.bucket.remaining(0.0) == 100
    found.charge(60, 0.0)
    # The queue of an engine elsewhere was full.
    found.refund(60, Overloaded("full", retry_after_s=1), 0.0)
    assert found.bucket.remaining(0.0) == 100


def test_a_key_bound_to_a_lane_goes_there_and_nowhere_else() -> None:
    bound = callers(key("a", b"1", lane="bulk")).identify(b"1", 0)
    free = callers(key("a", b"1")).identify(b"1", 0)
    assert [bound.lane_for(None), bound.lane_for("bulk")] == ["bulk", "bulk"]
    assert [free.lane_for(None), free.lane_for("interactive")] == [None, "interactive"]
    with pytest.raises(Forbidden, match="may only use lane bulk, not interactive"):
        bound.lane_for("interactive")


def test_another_version_of_the_file_changes_limits_and_forgets_nothing_that_was_used() -> None:
    limited = {"tokens_per_minute": 60, "burst_tokens": 100}
    found = callers(key("a", b"1", **limited), key("b", b"2"))
    before = found.identify(b"1", 0)
    before.charge(70, 0.0)
    # Another secret for the same name, and the same limit: the same bucket, also for requests under way.
    found.use((key("a", b"3", **limited),), 0.0)
    after = found.identify(b"3", 0)
    assert after.bucket is before.bucket
    for gone in (b"1", b"2"):
        with pytest.raises(Unauthorized):
            found.identify(gone, 0)
    found.use((key("a", b"3", tokens_per_minute=60, burst_tokens=200),), 0.0)
    larger = found.identify(b"3", 0).bucket
    assert larger is not None
    assert larger.remaining(0.0) == 130
    names = {sample.labels["key"] for family in found.metrics.tokens.collect() for sample in family.samples}
    assert names == {"a"}


def test_a_file_that_takes_a_plain_keys_name_or_secret_changes_nothing() -> None:
    found = Callers((key("api-key", b"1"),), KeyMetrics(Metrics().registry), 0.0)
    for clash in (key("api-key", b"2"), key("b", b"1")):
        with pytest.raises(KeysError, match="ME5_API_KEY"):
            found.use((clash,), 0.0)
    assert found.identify(b"1", 0).name == "api-key"


def test_the_command_line_shows_a_key_once_and_keeps_its_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    added = run_service("keys", "add", "search", "--tokens-per-minute", "600", "--lane", "bulk", keys_file=file)
    assert added.returncode == 0, added.stderr.decode()
    secret = added.stdout.strip()
    assert secret.startswith(b"me5_")
    assert secret not in added.stderr
    assert secret not in file.read_bytes()
    assert digest_of(secret).hex() in file.read_text()
    listed = run_service("keys", "list", keys_file=file).stdout.decode()
    assert listed == "search: 600 tokens a minute, 600 at once, lane bulk\n"
    assert run_service("keys", "add", "search", keys_file=file).returncode == 2
    assert run_service("keys", "remove", "search", keys_file=file).returncode == 0
    assert parse_keys(file.read_text()) == ()
    assert list(tmp_path.iterdir()) == [file]


def test_keys_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"

    def add(number: int) -> None:
        entry = entry_of("x", {"sha256": f"{number:064x}"})
        rewrite(file, lambda text: with_key(text, f"key-{number}", entry), new=HEADING)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(24)))
    assert {found.name for found in parse_keys(file.read_text())} == {f"key-{number}" for number in range(24)}


@pytest.mark.skipif(os.getuid() != 0, reason="who is not root can't write into another user's name")
def test_a_changed_file_stays_its_owners_and_where_that_fails_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    # Not in pytest's own folder, which is closed to other users.
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        file = Path(folder) / "keys.toml"
        file.write_text("")
        os.chmod(file, 0o640)
        os.chown(file, 10001, 10002)
        write_file(file, "# changed\n")
        found = file.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (10001, 10002, 0o640)
        assert not caplog.records
        os.seteuid(10003)
        try:
            write_file(file, "# changed again\n")
        finally:
            os.seteuid(0)
        assert file.stat().st_uid == 10003
    assert "belonged to user 10001, group 10002 and now to you" in caplog.text


@pytest.mark.parametrize("text", ['SECRET = "x"', "[SECRET]", "[a]\nSECRET = 1", "[SECRET]\n[SECRET]", '["a: SECRET"]'])
def test_a_key_pasted_as_a_name_is_refused_and_not_shown(text: str) -> None:
    secret = new_secret()
    with pytest.raises(KeysError, match="me5_…") as raised:
        parse_keys(text.replace("SECRET", secret))
    assert secret[4:20] not in str(raised.value)


@pytest.mark.parametrize(
    ("moment", "year"), [("9999-12-31T23:59:59-12:00", "9999"), ("0001-01-01T00:00:00+12:00", "1-")]
)
def test_the_first_and_the_last_moments_there_are_can_be_listed(moment: str, year: str) -> None:
    (found,) = parse_keys(f'[a]\nsha256 = "{HASH}"\nexpires = {moment}\n')
    assert year in found.describe(0.0)


def test_without_a_file_the_command_says_which_setting_names_one() -> None:
    done = run_service("keys", "list")
    assert done.returncode == 2
    assert done.stderr.decode().startswith("me5: ME5_KEYS_FILE is not set")
