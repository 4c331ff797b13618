"""From a DSN to the connection attempts that libpq is asked to make, and to a DSN one may show.

libpq resolves host names with a blocking call, even in ``PQconnectStart``, so names are resolved
here and handed over as ``hostaddr`` (docs: libpq-connect.html, PQconnectStartParams).
"""

from __future__ import annotations

import difflib
import inspect
import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from fsm.errors import BadInput, SessionError
from fsm.postgres import resolve

DsnValue: TypeAlias = str | Mapping[str, Any]
"""A libpq connection string (URL or keywords), or its keywords as a mapping."""

Dsn: TypeAlias = DsnValue | Callable[[], DsnValue | Awaitable[DsnValue]]
"""A DsnValue, or a function, async or not, that is asked for one at every connection."""

_HOW_TO_WRITE = (
    "write it as postgresql://user:password@host:port/dbname, with %-escapes for every character "
    "of user and password that is not a letter or a digit, or as keyword=value pairs"
)
# What libpq says of a string it cannot parse quotes the string, and with it perhaps a password.
# So its words are only recognized, and ours are shown; not recognizing them costs a hint.
_PARSE_FAULTS = (
    ('missing "="', "a word has no '=' after it; a value with spaces needs single quotes"),
    ("unterminated quoted string", "a single quote is not closed"),
    ("invalid connection option", "an option is unknown to libpq"),
    ("invalid URI query parameter", "an option after '?' is unknown to libpq"),
    ("percent-encoded", "a '%' begins no valid escape; write '%' itself as %25"),
    ("unexpected spaces", "it has spaces; write a space as %20"),
    ("key/value separator", "the part after '?' is not made of key=value pairs"),
    ("IPv6", "its IPv6 address is not of the form [address]"),
)
_KEYWORD_MEANT = {"database": "dbname", "db": "dbname", "username": "user", "pass": "password"}
_SECRET = frozenset({"scram_client_key", "scram_server_key"})
_SHOWN_FIRST = ("host", "hostaddr", "port", "user", "dbname")
# What decides where to connect, and must therefore be known here, wherever it is set.
_WHERE = (
    "host",
    "hostaddr",
    "port",
    "options",
    "connect_timeout",
    "target_session_attrs",
    "load_balance_hosts",
)
_NO_SSLMODE = "none-of-them"
_SIGNS_OF_A_DSN = ("@", "=", "://")


_MIN_LEASE = 1.0

# What a role's or a database's own settings would break, or make undecodable. The text formats are
# those of Postgres' own subscriber (libpqrcv_connect), search_path likewise: a name that another
# role has put in the way must not be found before the one of pg_catalog.
_FIXED_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "client_min_messages": "warning",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "on",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}


class _Target(NamedTuple):
    host: str
    hostaddr: str
    port: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection to try: at most one address, which libpq need not look up.

    Attributes:
        params: libpq's keywords. They hold the password and are not shown by ``repr``.
    """

    params: Mapping[str, str] = field(repr=False)

    @property
    def conninfo(self) -> str:
        """The connection string for libpq. It holds the password."""
        return make_conninfo("", **self.params)

    @property
    def host(self) -> str:
        """The host as it was written; empty for libpq's default socket directory."""
        return self.params.get("host", "")

    @property
    def hostaddr(self) -> str | None:
        """The address, None for a Unix-domain socket."""
        return self.params.get("hostaddr") or None

    @property
    def port(self) -> str:
        """The port, also of a Unix-domain socket."""
        return self.params.get("port") or _compiled_port()

    @property
    def seconds(self) -> float | None:
        """``connect_timeout`` in seconds, None where none is set. libpq leaves it to us."""
        return _connect_timeout(self.params)

    def __str__(self) -> str:
        """``db.example.org (10.0.0.3), port 5432``."""
        address = self.hostaddr
        host = self.host or ("" if address else "the default socket")
        shown = host if address in {None, host} else f"{host} ({address})".strip()
        return f"{shown}, port {self.port}"


async def attempts(
    dsn: Dsn,
    overrides: Mapping[str, str],
    *,
    shuffle: Callable[[list[Any]], None] = random.shuffle,
) -> list[Attempt]:
    """List the connections to try for a DSN, in libpq's order.

    Several hosts, several addresses of a name, ``PGHOST`` and the other variables of libpq's
    environment, a service file, ``load_balance_hosts`` and ``target_session_attrs=prefer-standby``
    are taken into account. A name that cannot be resolved is left out while another can.

    Args:
        dsn: where to connect. A function is asked now.
        overrides: keywords that win over the DSN's; ``options`` is added behind the DSN's own.
        shuffle: shuffles a list in place, for ``load_balance_hosts=random``.

    Raises:
        BadInput: the DSN is malformed.
        SessionError: in phase ``connect``: no host name could be resolved (facts
            ``host`` and ``gaierror_errno``, or ``errno`` where the system failed), or the function
            raised (fact ``dsn_function``).
    """
    given = await _asked(dsn)
    params = _complete(_parsed(given))
    found: list[_Target] = []
    unresolved: SessionError | None = None
    for target in _targets(params):
        try:
            found += await _resolved(target)
        except SessionError as error:
            unresolved = error
    if unresolved is not None and not found:
        raise unresolved
    if params.get("load_balance_hosts") == "random":
        shuffle(found)
    merged = {**params, **overrides, "options": _joined_options(params, overrides)}
    first = [_attempt(merged, target) for target in found]
    if merged.get("target_session_attrs") != "prefer-standby":
        return first
    # With one address per attempt, libpq cannot come back to an earlier host by itself.
    standbys = [Attempt({**one.params, "target_session_attrs": "standby"}) for one in first]
    return standbys + [Attempt({**one.params, "target_session_attrs": "any"}) for one in first]


def check(dsn: Dsn) -> None:
    """Refuse a DSN that can never work, as far as that shows without connecting.

    What a function returns is checked when it is asked.

    Raises:
        BadInput: what is wrong with it, in one sentence that holds nothing of a password.
    """
    if not callable(dsn):
        _targets(_complete(_parsed(dsn)))


def redact(dsn: Dsn) -> str:
    """Write a DSN so that it can be shown: keywords, every secret as ``***``.

    A DSN in which a password may have slipped into another field is not shown at all.
    """
    if callable(dsn):
        return "(a DSN asked for at each connection)"
    try:
        params = _parsed(dsn)
        _targets(params)
    except BadInput:
        return "(a malformed DSN)"
    if _password_may_be_elsewhere(dsn, params):
        return "(a DSN that is not shown, for its password may have slipped into another part)"
    secret = _secret_keywords()
    order = [*_SHOWN_FIRST, *sorted(set(params) - set(_SHOWN_FIRST))]
    shown = {key: "***" if key in secret else params[key] for key in order if key in params}
    return make_conninfo("", **shown)


def may_hold_secret(name: str) -> bool:
    """Does a name look as if part of a DSN, and perhaps its password, had slipped into it?"""
    return any(sign in name for sign in _SIGNS_OF_A_DSN)


def session_parameters(*, lease: float, application_name: str | None = None) -> dict[str, str]:
    """Build the keywords of a walsender session that cannot outlive its lease.

    ``wal_sender_timeout`` ends it while it streams, ``idle_session_timeout`` and
    ``idle_in_transaction_session_timeout`` while it does not, keepalives when the network is gone,
    at both ends, and at ours ``tcp_user_timeout`` (docs: runtime-config-connection.html,
    libpq-connect.html).
    Every one of these settings is open to a role that has only LOGIN and REPLICATION.

    Args:
        lease: seconds, at least 1, since TCP keepalives count in whole seconds.
        application_name: how the session is called in pg_stat_activity; None leaves it to the DSN,
            and to ``slotkeeper`` where the DSN does not say.

    Raises:
        BadInput: the lease is too short.
    """
    if not lease >= _MIN_LEASE:
        raise BadInput(f"a lease of {lease} s is too short: give at least {_MIN_LEASE:g} s")
    milliseconds = str(round(lease * 1000))
    idle = max(1, int(lease / 2))
    interval = max(1, int(lease / 6))
    count = max(1, int((lease - idle) / interval))
    settings = {
        "wal_sender_timeout": milliseconds,
        "idle_session_timeout": milliseconds,
        "idle_in_transaction_session_timeout": milliseconds,
        # At the server's end it would also end a connection whose client lives and does not read,
        # which is what a host does that is behind (tcp_probe_timer in Linux' tcp_timer.c).
        "tcp_user_timeout": "0",
        "tcp_keepalives_idle": str(idle),
        "tcp_keepalives_interval": str(interval),
        "tcp_keepalives_count": str(count),
        **_FIXED_SETTINGS,
    }
    named = {} if application_name is None else {"application_name": application_name}
    return {
        "replication": "database",
        "client_encoding": "UTF8",
        "fallback_application_name": "slotkeeper",
        "tcp_user_timeout": milliseconds,
        "keepalives": "1",
        "keepalives_idle": str(idle),
        "keepalives_interval": str(interval),
        "keepalives_count": str(count),
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        **named,
    }


@dataclass(frozen=True, slots=True)
class Setting:
    """A SET that not every server takes in the start-up packet.

    Attributes:
        sql: the statement.
        may_be_refused: an error of it (phase ``startup``) is to be passed over.
    """

    sql: str
    may_be_refused: bool = False


def after_connect_settings(server_version: int, *, lease: float) -> list[Setting]:
    """List what is to be SET once the version of the server is known.

    ``transaction_timeout`` is an unknown parameter before 17, which would end the start-up.
    ``client_connection_check_interval`` lets the server notice that a client which waits for a lock
    is gone; a server on a system without the socket event for it refuses any value but 0.

    Args:
        server_version: as libpq gives it, 170002 for 17.2.
        lease: seconds, as for ``session_parameters``.
    """
    interval = max(1, round(min(lease / 3, 1.0) * 1000))
    settings = [Setting(f"SET client_connection_check_interval = {interval}", may_be_refused=True)]
    if server_version >= 170000:  # noqa: PLR2004 - a version
        settings.append(Setting("SET transaction_timeout = 0"))
    return settings


async def _asked(dsn: Dsn) -> DsnValue:
    if not callable(dsn):
        return dsn
    try:
        answer = dsn()
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:
        # The host's own words may hold a secret: they stay in the cause.
        raise SessionError(
            f"the function that gives the DSN raised {type(error).__name__}",
            phase="connect",
            facts={"dsn_function": True},
        ) from error


def _parsed(dsn: DsnValue) -> dict[str, str]:
    if isinstance(dsn, str):
        return _parsed_string(dsn)
    if isinstance(dsn, Mapping):
        return _checked_keywords(dsn)
    raise BadInput(
        f"the DSN is of type {type(dsn).__name__}: give a string, a mapping of libpq's keywords, "
        "or a function that returns one of them"
    )


def _parsed_string(dsn: str) -> dict[str, str]:
    if "\0" in dsn:
        raise BadInput(f"the DSN holds a NUL character: {_HOW_TO_WRITE}")
    try:
        return {
            option.keyword.decode(): option.val.decode()
            for option in pq.Conninfo.parse(dsn.encode())
            if option.val is not None
        }
    except psycopg.OperationalError as error:
        fault = _parse_fault(str(error))
    except UnicodeError:  # also a %-escape of a byte that is no UTF-8
        fault = "it is not valid Unicode"
    # Raised out here so that libpq's words, which may quote a password, are not even the context.
    raise BadInput(f"the DSN cannot be parsed: {fault}; {_HOW_TO_WRITE}") from (
        psycopg.ProgrammingError(f"invalid connection string: {fault}")
    )


def _parse_fault(words: str) -> str:
    known = (ours for theirs, ours in _PARSE_FAULTS if theirs in words)
    return next(known, "libpq does not understand it")


def _checked_keywords(dsn: Mapping[str, Any]) -> dict[str, str]:
    params: dict[str, str] = {}
    for key, value in dsn.items():
        if key not in _keywords():
            raise BadInput(f"the DSN has the keyword {key!r}, unknown to libpq{_meant(key)}")
        if value is None:
            continue
        if "\0" in str(value):
            raise BadInput(f"the DSN holds a NUL character in its keyword {key!r}")
        params[key] = str(value)
    return params


def _meant(key: object) -> str:
    word = str(key).lower()
    near = difflib.get_close_matches(word, _keywords(), n=1)
    meant = _KEYWORD_MEANT.get(word) or (near[0] if near else None)
    return f": did you mean {meant!r}?" if meant else ""


def _complete(params: Mapping[str, str]) -> dict[str, str]:
    """Add what libpq would take from a service file or its environment."""
    known = _from_service(params) if "service" in params else _defaults()
    added = {key: known[key] for key in _WHERE if key in known}
    return {**added, **params}


def _from_service(params: Mapping[str, str]) -> dict[str, str]:
    # libpq has no call that only expands a service. A connection that it refuses for the value of
    # a parameter has been expanded, and has not touched the network yet.
    refused = make_conninfo("", **{**params, "sslmode": _NO_SSLMODE})
    pgconn = pq.PGconn.connect_start(refused.encode())
    try:
        known = {one.keyword.decode(): one.val.decode() for one in pgconn.info if one.val}
    finally:
        pgconn.finish()
    if not known:
        raise BadInput(
            f"the DSN names the service {params['service']!r}, which libpq cannot find: "
            "look at pg_service.conf, PGSERVICEFILE and PGSYSCONFDIR"
        )
    return known


def _targets(params: Mapping[str, str]) -> list[_Target]:
    hosts = params["host"].split(",") if params.get("host") else []
    addresses = params["hostaddr"].split(",") if params.get("hostaddr") else []
    ports = params["port"].split(",") if params.get("port") else [""]
    count = max(len(hosts), len(addresses), 1)
    if hosts and addresses and len(hosts) != len(addresses):
        raise BadInput(
            f"the DSN has {len(hosts)} hosts and {len(addresses)} hostaddr values: "
            "give one address for each host"
        )
    if len(ports) not in {1, count}:
        raise BadInput(
            f"the DSN has {count} hosts and {len(ports)} ports: give one port, or one for each host"
        )
    for host in hosts:
        _check_host(host)
    for port in ports:
        _check_port(port)
    _connect_timeout(params)
    return [
        _Target(host, address, port or _compiled_port())
        for host, address, port in zip(
            hosts or [""] * count,
            addresses or [""] * count,
            ports * count if len(ports) == 1 else ports,
            strict=True,
        )
    ]


def _check_host(host: str) -> None:
    # An abstract socket begins with '@'; a second one is a password's.
    if host.startswith("/") or (_is_socket(host) and "@" not in host[1:]):
        return
    if "@" in host:
        raise BadInput("the DSN has a host with '@' in it: write '@' in a password as %40")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise BadInput(f"the DSN has the host {host!r}, which is no host name") from error


def _check_port(port: str) -> None:
    if port and not (port.strip().isdecimal() and 0 < int(port) <= 65535):  # noqa: PLR2004 - TCP's
        # Not shown: an unescaped '/' in a URL's password makes a port of the password.
        raise BadInput(
            "the DSN has a port that is not a number from 1 to 65535: "
            "write '/' in a password as %2F"
        )


def _connect_timeout(params: Mapping[str, str]) -> float | None:
    given = params.get("connect_timeout")
    if not given:
        return None
    try:
        seconds = int(given)
    except ValueError:
        raise BadInput("the DSN's connect_timeout is not a whole number of seconds") from None
    return float(seconds) if seconds > 0 else None


async def _resolved(target: _Target) -> list[_Target]:
    if target.hostaddr or not target.host or _is_socket(target.host):
        return [target]
    if _is_address(target.host):
        return [target._replace(hostaddr=target.host)]
    try:
        answer = await resolve.addresses(target.host)
    except OSError as error:
        raise _unresolved(target.host, error) from error
    return [target._replace(hostaddr=str(entry[4][0])) for entry in answer]


def _unresolved(host: str, error: OSError) -> SessionError:
    number = "gaierror_errno" if isinstance(error, socket.gaierror) else "errno"
    return SessionError(
        f"the host name {host!r} cannot be resolved: {error.strerror or error}",
        phase="connect",
        facts={"host": host, number: error.errno},
    )


def _attempt(params: Mapping[str, str], target: _Target) -> Attempt:
    # All three are given, empty ones too, so that PGHOST and its like do not come in again.
    return Attempt({**params, **target._asdict()})


def _joined_options(params: Mapping[str, str], overrides: Mapping[str, str]) -> str:
    both = (params.get("options"), overrides.get("options"))
    return " ".join(options for options in both if options)


def _is_socket(host: str) -> bool:
    # libpq's is_unixsock_path: a directory, or Linux's abstract namespace.
    return host.startswith(("/", "@"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _password_may_be_elsewhere(dsn: DsnValue, params: Mapping[str, str]) -> bool:
    if may_hold_secret(params.get("dbname", "")):
        return True
    # "user:1/2@host/db": an unescaped '/' in a password ends what libpq takes for user and host.
    _, _, behind_host = str(dsn).partition("://")[2].partition("/")
    return isinstance(dsn, str) and "@" in behind_host


def _defaults() -> dict[str, str]:
    known = pq.Conninfo.get_defaults()
    return {option.keyword.decode(): option.val.decode() for option in known if option.val}


@cache
def _compiled_port() -> str:
    # libpq takes this one, not PGPORT, for an empty entry in a list of ports.
    known = (one.compiled for one in pq.Conninfo.get_defaults() if one.keyword == b"port")
    return (next(known) or b"5432").decode()


@cache
def _keywords() -> tuple[str, ...]:
    return tuple(option.keyword.decode() for option in pq.Conninfo.get_defaults())


@cache
def _secret_keywords() -> frozenset[str]:
    # libpq marks what a connect dialog should hide with '*' (PQconninfoOption.dispchar).
    hidden = (one for one in pq.Conninfo.get_defaults() if one.dispchar == b"*")
    return _SECRET | {option.keyword.decode() for option in hidden}
