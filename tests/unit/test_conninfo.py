from __future__ import annotations

import socket
import traceback
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq

from fsm.errors import BadInput, SessionError
from fsm.postgres import conninfo
from fsm.postgres.conninfo import Attempt, after_connect_settings, check, redact, session_parameters

if TYPE_CHECKING:
    from pathlib import Path

_PG_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGOPTIONS", "PGSERVICE", "PGPASSWORD")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _PG_VARIABLES:
        monkeypatch.delenv(name, raising=False)


async def _attempts(dsn: conninfo.Dsn, **overrides: str) -> list[Attempt]:
    return await conninfo.attempts(dsn, overrides)


def _where(attempts: list[Attempt]) -> list[tuple[str, str | None, str]]:
    return [(one.host, one.hostaddr, one.port) for one in attempts]


def _all_words(error: BaseException) -> str:
    shown = "".join(traceback.format_exception(error))
    context = error.__context__
    return shown + (_all_words(context) if context is not None else "")


# --- where to connect


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:pw@127.0.0.1:6000/shop",
        "host=127.0.0.1 port=6000 user=app password=pw dbname=shop",
        {"host": "127.0.0.1", "port": 6000, "user": "app", "password": "pw", "dbname": "shop"},
        lambda: "postgresql://app:pw@127.0.0.1:6000/shop",
    ],
)
async def test_a_dsn_may_be_a_url_keywords_a_mapping_or_a_function(dsn: conninfo.Dsn) -> None:
    (attempt,) = await _attempts(dsn)
    assert _where([attempt]) == [("127.0.0.1", "127.0.0.1", "6000")]
    assert attempt.params["user"] == "app"
    assert attempt.params["dbname"] == "shop"
    assert attempt.params["password"] == "pw"  # noqa: S105  (of nobody)


@pytest.mark.asyncio
async def test_an_asynchronous_function_is_asked_at_every_connection() -> None:
    tokens = iter(["first", "second"])

    async def dsn() -> dict[str, str]:
        return {"host": "127.0.0.1", "password": next(tokens)}

    seen = [(await _attempts(dsn))[0].params["password"] for _ in range(2)]
    assert seen == ["first", "second"]


@pytest.mark.asyncio
async def test_several_hosts_become_attempts_in_their_order() -> None:
    found = await _attempts("host=127.0.0.1,::1,/run/pg port=1,2,3")
    assert _where(found) == [
        ("127.0.0.1", "127.0.0.1", "1"),
        ("::1", "::1", "2"),
        ("/run/pg", None, "3"),
    ]


@pytest.mark.asyncio
async def test_one_port_serves_all_hosts_and_an_empty_one_is_the_default() -> None:
    assert [a.port for a in await _attempts("host=127.0.0.1,::1 port=7")] == ["7", "7"]
    assert [a.port for a in await _attempts("host=127.0.0.1,::1 port=7,")] == ["7", "5432"]


@pytest.mark.asyncio
async def test_an_address_that_is_given_is_not_looked_up() -> None:
    found = await _attempts("host=no-such-host.invalid hostaddr=127.0.0.9")
    assert _where(found) == [("no-such-host.invalid", "127.0.0.9", "5432")]


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["/run/postgresql", "@abstract"])
async def test_a_socket_directory_is_left_as_it_is(host: str) -> None:
    assert _where(await _attempts({"host": host})) == [(host, None, "5432")]


@pytest.mark.asyncio
async def test_every_address_of_a_name_is_an_attempt() -> None:
    known = {
        str(entry[4][0]) for entry in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    }
    found = await _attempts("host=localhost")
    assert {one.hostaddr for one in found} == known
    assert {one.host for one in found} == {"localhost"}


@pytest.mark.asyncio
async def test_libpq_s_environment_counts_where_the_dsn_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.7,127.0.0.8")
    monkeypatch.setenv("PGPORT", "6001")
    expected = [("127.0.0.7", "127.0.0.7", "6001"), ("127.0.0.8", "127.0.0.8", "6001")]
    assert _where(await _attempts("")) == expected
    assert _where(await _attempts("host=127.0.0.1")) == [("127.0.0.1", "127.0.0.1", "6001")]


@pytest.mark.asyncio
async def test_a_host_that_is_empty_on_purpose_beats_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.7")
    (attempt,) = await _attempts({"host": ""})
    known = {o.keyword: o.val for o in pq.Conninfo.parse(attempt.conninfo.encode())}
    assert known[b"host"] == b""
    assert known[b"hostaddr"] == b""


@pytest.mark.asyncio
async def test_a_service_file_tells_where_to_connect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "services"
    file.write_text("[shop]\nhost=127.0.0.3\nport=6003\noptions=-c work_mem=1MB\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    (attempt,) = await _attempts("service=shop", options="-c lock_timeout=0")
    assert _where([attempt]) == [("127.0.0.3", "127.0.0.3", "6003")]
    assert attempt.params["options"] == "-c work_mem=1MB -c lock_timeout=0"
    with pytest.raises(BadInput, match="service 'shap'"):
        check("service=shap")


@pytest.mark.asyncio
async def test_our_options_come_after_those_of_the_dsn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c jit=off")
    (own,) = await _attempts({"host": "/s", "options": "-c a.b=1"}, options="-c lock_timeout=0")
    assert own.params["options"] == "-c a.b=1 -c lock_timeout=0"
    (of_environment,) = await _attempts("host=/s", options="-c lock_timeout=0")
    assert of_environment.params["options"] == "-c jit=off -c lock_timeout=0"


@pytest.mark.asyncio
async def test_overrides_win_over_the_dsn() -> None:
    (attempt,) = await _attempts("host=/s replication=false", replication="database")
    assert attempt.params["replication"] == "database"


@pytest.mark.asyncio
async def test_load_balancing_shuffles_the_addresses() -> None:
    dsn = "host=127.0.0.1,127.0.0.2,127.0.0.3 load_balance_hosts=random"
    found = await conninfo.attempts(dsn, {}, shuffle=list.reverse)
    assert [one.host for one in found] == ["127.0.0.3", "127.0.0.2", "127.0.0.1"]


@pytest.mark.asyncio
async def test_prefer_standby_asks_every_host_for_a_standby_before_it_takes_any() -> None:
    dsn = "host=127.0.0.1,127.0.0.2 target_session_attrs=prefer-standby"
    found = [(one.host, one.params["target_session_attrs"]) for one in await _attempts(dsn)]
    assert found == [
        ("127.0.0.1", "standby"),
        ("127.0.0.2", "standby"),
        ("127.0.0.1", "any"),
        ("127.0.0.2", "any"),
    ]


@pytest.mark.asyncio
async def test_connect_timeout_is_the_attempt_s_own_in_seconds() -> None:
    assert (await _attempts("host=/s connect_timeout=7"))[0].seconds == 7.0
    assert (await _attempts("host=/s connect_timeout=0"))[0].seconds is None
    assert (await _attempts("host=/s"))[0].seconds is None


@pytest.mark.asyncio
async def test_a_host_that_cannot_be_resolved_is_named_with_the_resolver_s_code() -> None:
    with pytest.raises(SessionError) as caught:
        await _attempts("host=no-such-host.invalid")
    error = caught.value
    assert error.phase == "connect"
    assert error.sqlstate is None
    assert error.facts["host"] == "no-such-host.invalid"
    assert isinstance(error.__cause__, socket.gaierror)
    assert error.facts["gaierror_errno"] == error.__cause__.errno
    assert error.facts["gaierror_errno"] < 0


@pytest.mark.asyncio
async def test_a_host_that_cannot_be_resolved_is_passed_over_while_another_can() -> None:
    found = await _attempts("host=no-such-host.invalid,127.0.0.1")
    assert [one.host for one in found] == ["127.0.0.1"]


@pytest.mark.asyncio
async def test_a_function_that_raises_is_a_failed_connection_and_its_words_are_not_ours() -> None:
    def dsn() -> str:
        raise LookupError("the vault said s3cr3t")

    with pytest.raises(SessionError) as caught:
        await _attempts(dsn)
    assert caught.value.phase == "connect"
    assert caught.value.facts["dsn_function"] is True
    assert isinstance(caught.value.__cause__, LookupError)
    assert "LookupError" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.asyncio
async def test_what_a_function_returns_is_checked_too() -> None:
    with pytest.raises(BadInput, match="type int"):
        await _attempts(lambda: 5)  # type: ignore[arg-type, return-value]


# --- what is refused


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://u:p%zz@h/db", "write '%' itself as %25"),
        ("host", "no '=' after it"),
        ("password='x", "quote is not closed"),
        ("hots=x", "unknown to libpq"),
        ("postgresql://h/db?hots=x", "unknown to libpq"),
        ("postgresql://[::1/db", "IPv6"),
        ("host=a\0b", "NUL"),
        ({"host": "a\0b"}, "NUL"),
        ({"database": "x"}, "did you mean 'dbname'"),
        ({"passwrod": "x"}, "did you mean 'password'"),
        ("host=a,b hostaddr=1.1.1.1", "2 hosts and 1 hostaddr"),
        ("host=a,b,c port=1,2", "3 hosts and 2 ports"),
        ("host=a port=x", "not a number from 1 to 65535"),
        ("host=a port=0", "not a number from 1 to 65535"),
        ("host=a port=65536", "not a number from 1 to 65535"),
        ("host=a connect_timeout=soon", "connect_timeout"),
        ("host=a..b", "'a..b', which is no host name"),
        ("postgresql://u:p@w@h/db", "write '@' in a password as %40"),
        (17, "type int"),
    ],
)
def test_a_malformed_dsn_is_refused_in_one_sentence(dsn: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(dsn)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cause_of_a_malformed_dsn_is_psycopg_s_error() -> None:
    with pytest.raises(BadInput) as caught:
        check("hots=x")
    assert isinstance(caught.value.__cause__, psycopg.ProgrammingError)


@pytest.mark.parametrize("dsn", ["", "host=localhost", "postgresql:///db", {}, lambda: "host="])
def test_a_dsn_that_can_work_is_accepted(dsn: Any) -> None:
    check(dsn)


# --- what is shown


def test_an_escape_of_a_byte_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadInput, match="not valid Unicode"):
        check("postgresql://app:%a1@db.example/shop")


def test_a_dsn_is_shown_without_its_secrets() -> None:
    shown = redact("postgresql://app:s3cr3t@db.example/shop?sslpassword=s3cr3t&sslmode=require")
    assert shown == (
        "host=db.example user=app dbname=shop password=*** sslmode=require sslpassword=***"
    )


def test_a_function_is_not_asked_to_be_shown() -> None:
    def dsn() -> str:
        raise AssertionError

    assert "asked" in redact(dsn)


def test_an_attempt_is_shown_without_its_secrets() -> None:
    attempt = Attempt({"host": "db.example", "hostaddr": "10.0.0.3", "password": "s3cr3t"})
    assert str(attempt) == "db.example (10.0.0.3), port 5432"
    assert "s3cr3t" not in repr(attempt)


_SPECIAL = st.text(alphabet=" '\"\\/@:?#%&abc1", max_size=6)
_FORMS = st.sampled_from(
    [
        "postgresql://app:{}@db.example:5433/shop",
        "postgres://app:{}@db.example/shop?sslmode=require",
        "postgresql://db.example/shop?password={}",
        "postgresql://app:{}@db.example,10.0.0.2:5433/shop?user=me",
        "host=db.example password={} dbname=shop",
        "password='{}' host=db.example",
    ]
)


def _words_of_check(dsn: str) -> str:
    try:
        check(dsn)
    except BadInput as error:
        return _all_words(error)
    return ""


@given(form=_FORMS, before=_SPECIAL, after=_SPECIAL)
def test_a_password_is_never_shown_however_it_is_mangled(
    form: str, before: str, after: str
) -> None:
    dsn = form.format(f"{before}s3cr3t{after}")
    assert "s3cr3t" not in redact(dsn)
    assert "s3cr3t" not in _words_of_check(dsn)


@given(key=st.sampled_from(["password", "sslpassword"]), before=_SPECIAL, after=_SPECIAL)
def test_a_secret_of_a_mapping_is_never_shown(key: str, before: str, after: str) -> None:
    dsn = {"host": "db.example", key: f"{before}s3cr3t{after}"}
    assert redact(dsn) == f"host=db.example {key}=***"


@pytest.mark.asyncio
@given(password=st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8")))
async def test_libpq_gets_a_password_as_it_was_given(password: str) -> None:
    (attempt,) = await conninfo.attempts({"host": "/s", "password": password}, {})
    known = {o.keyword: o.val for o in pq.Conninfo.parse(attempt.conninfo.encode())}
    assert known[b"password"] == password.encode()


# --- the lease


def _settings(options: str) -> dict[str, str]:
    words = options.split()
    assert words[::2] == ["-c"] * (len(words) // 2)
    return dict(word.split("=", 1) for word in words[1::2])


@given(lease=st.floats(min_value=1, max_value=3600))
def test_no_part_of_a_session_outlives_the_lease(lease: float) -> None:
    params = session_parameters(lease=lease)
    settings = _settings(params["options"])
    milliseconds = round(lease * 1000)
    assert int(params["tcp_user_timeout"]) == milliseconds
    for name in (
        "wal_sender_timeout",
        "idle_session_timeout",
        "idle_in_transaction_session_timeout",
    ):
        assert int(settings[name]) == milliseconds
    for table, prefix in ((params, "keepalives"), (settings, "tcp_keepalives")):
        idle, interval, count = (
            int(table[f"{prefix}_{name}"]) for name in ("idle", "interval", "count")
        )
        assert min(idle, interval, count) >= 1
        # Whole seconds: a lease of 1 s cannot be met more closely than this.
        assert idle + interval * count <= max(lease, 2)


@pytest.mark.parametrize("lease", [0.999, 0, -1, float("nan")])
def test_a_lease_under_a_second_is_refused(lease: float) -> None:
    with pytest.raises(BadInput, match="at least 1 s"):
        session_parameters(lease=lease)


def test_a_name_of_the_dsn_is_kept_unless_another_is_given() -> None:
    assert "application_name" not in session_parameters(lease=10)
    assert session_parameters(lease=10, application_name="etl")["application_name"] == "etl"


def test_transaction_timeout_is_only_set_where_it_exists() -> None:
    before = [setting.sql for setting in after_connect_settings(169999, lease=10)]
    since = [setting.sql for setting in after_connect_settings(170000, lease=10)]
    assert not any("transaction_timeout" in sql for sql in before)
    assert "SET transaction_timeout = 0" in since


@given(lease=st.floats(min_value=1, max_value=3600))
def test_a_vanished_waiter_is_looked_for_well_within_the_lease(lease: float) -> None:
    (setting,) = after_connect_settings(150000, lease=lease)
    assert setting.may_be_refused
    interval = int(setting.sql.rpartition(" ")[2])
    assert 1 <= interval <= min(lease * 1000 / 2, 1000)
