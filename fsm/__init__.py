"""slotkeeper: keeps a Postgres replication slot and streams its changes to a Python program."""

from fsm._version import __version__
from fsm.errors import (
    AckRefused,
    BadInput,
    DecodeError,
    LeaseLost,
    SessionError,
    SlotFailed,
    SlotkeeperError,
    SpecError,
)
from fsm.health import Health
from fsm.keeper import Keeper
from fsm.postgres.changes import UNCHANGED, Change, Row
from fsm.postgres.lsn import format_lsn, parse_lsn
from fsm.postgres.values import Interval, OutOfRange
from fsm.runtime.journal import Journal, Record
from fsm.transaction import Transaction

__all__ = [
    "UNCHANGED",
    "AckRefused",
    "BadInput",
    "Change",
    "DecodeError",
    "Health",
    "Interval",
    "Journal",
    "Keeper",
    "LeaseLost",
    "OutOfRange",
    "Record",
    "Row",
    "SessionError",
    "SlotFailed",
    "SlotkeeperError",
    "SpecError",
    "Transaction",
    "__version__",
    "format_lsn",
    "parse_lsn",
]
