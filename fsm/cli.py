"""The command ``slotkeeper``.

Exit codes: 0 stopped or all is well, 1 failed, 2 the command was used wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

from fsm._version import __version__
from fsm.errors import BadInput, LeaseLost, SlotFailed, SlotkeeperError, SpecError
from fsm.feed import Item
from fsm.keeper import Keeper
from fsm.machine.diagram import FORMATS
from fsm.machine.loader import load, shipped_path
from fsm.machine.schema import json_schema
from fsm.machine.verify import verify
from fsm.output import write_out
from fsm.postgres.changes import Message, Truncate
from fsm.postgres.conninfo import may_hold_secret, redact
from fsm.postgres.lsn import format_lsn
from fsm.runtime.journal import Record
from fsm.transaction import Transaction


class GaveUp(SlotkeeperError):
    """It did not stream within the time that was given."""


OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
FINISH: Final = 1.0
"""Seconds that a transaction which is being written is given when a stop is asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: instead of the process's own.

    Returns:
        The exit code.
    """
    options = _parse(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except BadInput as error:
        _say(str(error))
        return USAGE
    except SlotFailed as error:
        _say(f"Failed, {error.error_class}: {error}")
        return FAILED
    except SlotkeeperError as error:
        _say(str(error))
        return FAILED
    except BrokenPipeError:
        # Whoever read our output is gone; so that Python does not complain of it while it exits:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        _say(f"cannot write what was read: {error.strerror}; make room, or write elsewhere")
        return FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    _refuse_misplaced_dsn(parser, sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest:
        # Not shown as they are: a connection string without quotes ends up here, password and all.
        unknown = [word.partition("=")[0] for word in rest if word.startswith("--")]
        named = f"unknown option {', '.join(unknown)}" if unknown else "too many arguments"
        parser.error(f"{named}; a connection string with spaces is one argument, in quotes")
    return options


def _refuse_misplaced_dsn(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Say what is wrong without the password that argparse would show."""
    first = next((word for word in arguments if not word.startswith("-")), "")
    if "=" in first or "/" in first or "@" in first:
        parser.error("a connection string comes after the command, such as run")


def _seconds(text: str) -> float:
    """Read an option in seconds. What was given is not repeated: it may be a misplaced DSN."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("expected a number of seconds") from None


def _file(text: str) -> Path:
    """Read the name of a file, unless it looks like a misplaced DSN."""
    if may_hold_secret(text):
        raise argparse.ArgumentTypeError("expected the name of a file, not a connection string")
    return Path(text)


def _say(text: str) -> None:
    print(f"slotkeeper: {text}", file=sys.stderr, flush=True)  # noqa: T201  (a command speaks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slotkeeper",
        description="Keep one Postgres replication slot and stream its changes.",
        epilog="Exit codes: 0 stopped, 1 failed, 2 used wrongly.",
    )
    parser.add_argument("--version", action="version", version=f"slotkeeper {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_check(commands)
    _add_schema(commands)
    _add_diagram(commands)
    _add_demo(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="stream a slot: one JSON object per change on stdout, state changes on stderr",
        description=(
            "Stream a slot: one JSON object per change on stdout, state changes on stderr. A "
            "transaction is acknowledged when all of its changes are written. SIGINT and SIGTERM "
            "stop it gracefully, a second one at once."
        ),
    )
    run.add_argument(
        "dsn",
        nargs="?",
        default="",
        help="connection string or URL; without it, libpq's environment (PGHOST, PGUSER, ...)",
    )
    run.add_argument("--slot", required=True, help="name of the replication slot")
    run.add_argument(
        "--publication",
        required=True,
        action="append",
        help="name of a publication; may be given several times",
    )
    run.add_argument("--create-slot", action="store_true", help="create the slot if it is missing")
    run.add_argument(
        "--lease",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="after which a frozen or unreachable session loses the slot (default: 10)",
    )
    run.add_argument(
        "--lock-slice",
        type=_seconds,
        metavar="SECONDS",
        help="of one wait for the lock, which holds a snapshot meanwhile (default: 30)",
    )
    run.add_argument(
        "--give-up-after",
        type=_seconds,
        metavar="SECONDS",
        help="exit with 1 unless it streams within this time (default: the policies decide)",
    )
    run.add_argument("--machine", type=_file, metavar="FILE", help="another states.yaml")
    run.set_defaults(command=_run)


def _add_check(commands: Any) -> None:
    check = commands.add_parser("check", help="read a states.yaml and prove what it promises")
    check.add_argument("file", nargs="?", type=_file, help="by default, the file that is shipped")
    check.set_defaults(command=_check)


def _add_schema(commands: Any) -> None:
    schema = commands.add_parser("schema", help="print the JSON Schema of states.yaml")
    schema.set_defaults(command=_schema)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="tell the story of one slot on a throw-away server, in less than a minute",
        description=(
            "Start a throw-away Postgres, a writer and two keepers of one slot; let a rival take "
            "the slot, restart the server, kill a keeper, drop the publication; and tell what "
            "happens meanwhile. Nothing is left behind."
        ),
    )
    demo.add_argument("--json", action="store_true", help="print nothing but the figures, as JSON")
    demo.set_defaults(command=_demo)


def _add_diagram(commands: Any) -> None:
    diagram = commands.add_parser("diagram", help="draw a states.yaml")
    diagram.add_argument("file", nargs="?", type=_file, help="by default, the file that is shipped")
    diagram.add_argument(
        "--format",
        choices=FORMATS,
        default="mermaid",
        help="svg takes seconds, and the extra 'cli' (default: mermaid)",
    )
    diagram.set_defaults(command=_diagram)


def _check(options: argparse.Namespace) -> int:
    path = options.file or shipped_path()
    try:
        spec = load(path)
    except SpecError as error:
        for problem in error.problems:
            _write(sys.stderr, problem)
        return FAILED
    findings = verify(spec)
    for finding in findings:
        _write(sys.stderr, f"{path}: {finding}")
    if findings:
        return FAILED
    _write(sys.stdout, f"{path}: holds ({len(spec.states)} states, {len(spec.transitions)} rows)")
    return OK


def _schema(_: argparse.Namespace) -> int:
    _write(sys.stdout, json_schema())
    return OK


def _demo(options: argparse.Namespace) -> int:
    from fsm import demo  # noqa: PLC0415  (only the demo needs a server)

    return demo.print_json() if options.json else demo.show()


def _diagram(options: argparse.Namespace) -> int:
    _write(sys.stdout, FORMATS[options.format](load(options.file or shipped_path())))
    return OK


def _write(stream: TextIO, text: str) -> None:
    print(text, file=stream, flush=True)


def _run(options: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise BadInput("standard output is closed, and changes are written there")
    limit = options.give_up_after
    if limit is not None and not 0 < limit < math.inf:
        raise BadInput(f"--give-up-after is {limit:g} s; it must be a number of seconds above 0")
    spec = load(options.machine) if options.machine else None
    keeper = Keeper(
        options.dsn,
        slot=options.slot,
        publication=options.publication,
        slot_policy="create" if options.create_slot else "require",
        lease=options.lease,
        lock_slice=options.lock_slice,
        spec=spec,
    )
    _write(
        sys.stderr,
        f"slotkeeper: slot '{options.slot}' on {redact(options.dsn) or 'the default server'}",
    )
    return asyncio.run(_stream(keeper, options.give_up_after))


async def _stream(keeper: Keeper, give_up_after: float | None) -> int:
    keeper.journal.listen(_tell)
    loop = asyncio.get_running_loop()
    at_hand = asyncio.Lock()
    task = asyncio.create_task(_print_changes(keeper, give_up_after, at_hand))
    stopping = _Stopping(keeper, task, at_hand)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.ask)
    try:
        return await task
    except asyncio.CancelledError:
        return OK
    finally:
        await stopping.finished()


class _Stopping:
    """The first signal stops gracefully, the second at once.

    Args:
        keeper: is stopped.
        task: prints what it gives.
        at_hand: locked while a transaction is being written.
    """

    def __init__(self, keeper: Keeper, task: asyncio.Task[int], at_hand: asyncio.Lock) -> None:
        self._keeper = keeper
        self._task = task
        self._at_hand = at_hand
        self._graceful: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Take a signal."""
        if self._graceful is None:
            self._graceful = asyncio.create_task(self._stop())
        else:
            self._task.cancel()

    async def _stop(self) -> None:
        """Let what is being written be acknowledged first, so that it does not come again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH):
                await self._at_hand.acquire()
        await self._keeper.stop()
        self._task.cancel()

    async def finished(self) -> None:
        """Wait for what was begun."""
        if self._graceful is None:
            return
        self._graceful.cancel()
        with suppress(asyncio.CancelledError, SlotkeeperError):
            await self._graceful


async def _print_changes(keeper: Keeper, give_up_after: float | None, at_hand: asyncio.Lock) -> int:
    async with keeper:
        if give_up_after is not None:
            await _stream_within(keeper, give_up_after)
        async for transaction in keeper:
            async with at_hand:
                with suppress(LeaseLost):  # it comes again, here or to whoever has the slot now
                    async for batch in transaction.batches():
                        await _print_batch(transaction, batch)
                    await keeper.ack(transaction)
    return OK


async def _stream_within(keeper: Keeper, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await keeper.wait_for("Streaming", "Idle")
    except TimeoutError:
        raise GaveUp(
            f"gave up after {seconds:g} s. {keeper.why()} {keeper.health.remedy or ''}"
        ) from None


async def _print_batch(transaction: Transaction, batch: list[Item]) -> None:
    lines = b"".join(_line(_as_json(transaction, item)) for item in batch)
    await write_out(sys.stdout.fileno(), lines)


def _line(fields: dict[str, Any]) -> bytes:
    try:
        return f"{json.dumps(fields, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # Postgres' json may hold half of a surrogate pair
        return f"{json.dumps(fields)}\n".encode()


def _as_json(transaction: Transaction, item: Item) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "xid": transaction.xid,
        "commit_lsn": format_lsn(transaction.commit_lsn),
        "commit_time": transaction.commit_time.isoformat() if transaction.commit_time else None,
    }
    if isinstance(item, Truncate):
        tables = [f"{relation.schema}.{relation.name}" for relation in item.relations]
        return {"kind": "truncate", "tables": tables, **fields}
    if isinstance(item, Message):
        content = item.content.decode("utf-8", "backslashreplace")
        return {"kind": "message", "prefix": item.prefix, "content": content, **fields}
    return {**item.as_dict(), **fields}


def _tell(record: Record) -> None:
    """Write a state change, or what is waited for, to stderr; a failure with its remedy."""
    if record.trigger == "waiting_noticed":
        _write(sys.stderr, f"slotkeeper: {record.state}: {_awaited(record)}")
        return
    if record.state == record.dest and not record.detail:
        return
    parts = [f"slotkeeper: {record.state} -> {record.dest} ({record.trigger})"]
    if record.error_class:
        parts.append(f"attempt {record.attempt}, {record.error_class}")
    if record.delay is not None:
        parts.append(f"next try in {record.delay:.1f} s")
    if record.detail:
        parts.append(record.detail)
    line = ": ".join(parts)
    remedy = record.facts.get("remedy")
    # Where it ends in Failed, the command's last line says both once more.
    _write(sys.stderr, f"{line.rstrip('.')}. {remedy}" if remedy else line)


def _awaited(record: Record) -> str:
    if record.state == "Acquiring":
        return "the slot is being inspected and started"
    holder = record.facts.get("lock_holder", "another session")
    return f"waiting for the lock, which {holder} holds"
