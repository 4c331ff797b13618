"""The figures that slotkeeper promises, on real servers. Each test prints what it measured."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from fsm.embedded import Postgres
from tests.support.keeper_process import KeeperProcess
from tests.support.raw import RawHolder
from tests.support.servers import Database

LEASE = 2.0


def report(name: str, **figures: float) -> None:
    shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
    print(f"\n{name}: {shown}")  # noqa: T201  (what acceptance is run for)


def keeper(database: Database, **options: object) -> KeeperProcess:
    defaults: dict[str, object] = {"lease": LEASE}
    return KeeperProcess(dsn=database.dsn, slot="s", publication="p", **{**defaults, **options})


def test_a_rival_for_a_minute_costs_the_attempts_of_the_policy_and_no_cpu(kept: Database) -> None:
    with RawHolder(kept.dsn, "s", "p") as rival, keeper(kept, lease=10.0) as ours:
        first = ours.wait_for("BackingOff")
        cpu, began = ours.cpu_seconds(), time.monotonic()
        time.sleep(60)
        share = (ours.cpu_seconds() - cpu) / (time.monotonic() - began)
        attempts = sum(r["trigger"] == "error_wait" for r in ours.records)
        rival.leave()
        left = time.monotonic()
        remaining = ours.records[-1]["delay"] - (left - ours.records[-1]["at"])
        ours.say("retry")
        streaming = ours.wait_for("Streaming", after=first)
    report(
        "rival for 60 s",
        attempts=attempts,
        cpu_percent=100 * share,
        after_retry_now_ms=1000 * (streaming - left),
        backoff_left_s=remaining,
    )
    assert attempts <= 13
    assert share < 0.005
    assert streaming - left < 1


def test_it_streams_within_one_backoff_delay_of_the_rival_leaving(kept: Database) -> None:
    with RawHolder(kept.dsn, "s", "p") as rival, keeper(kept) as ours:
        ours.wait_for("BackingOff")
        time.sleep(5)
        rival.leave()
        left = time.monotonic()
        due = ours.records[-1]["at"] + ours.records[-1]["delay"]
        streaming = ours.wait_for("Streaming")
    report("after the rival left", waited_s=streaming - left, one_delay_s=due - left)
    assert streaming <= max(due, left) + 0.5


def test_takeover_after_sigkill(kept: Database) -> None:
    times = []
    ours = keeper(kept)
    ours.wait_for("Streaming")
    for _ in range(10):
        with keeper(kept) as waiting:
            waiting.wait_for_trigger("session_opened")
            time.sleep(0.3)
            killed = time.monotonic()
            os.kill(ours.pid, signal.SIGKILL)
            times.append(1000 * (waiting.wait_for("Streaming", after=killed) - killed))
            ours.__exit__()
            ours = keeper(kept)
            ours.wait_for_trigger("session_opened")
        ours.wait_for("Streaming")
    ours.__exit__()
    report("takeover after SIGKILL (ms, n=10)", median=statistics.median(times), worst=max(times))
    assert statistics.median(times) < 50
    assert max(times) < 500


@contextmanager
def frozen(process: KeeperProcess) -> Iterator[float]:
    process.signal(signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        process.signal(signal.SIGCONT)


def test_a_frozen_holder_delays_the_next_by_at_most_the_lease(kept: Database) -> None:
    with keeper(kept) as holder:
        holder.wait_for("Streaming")
        with keeper(kept) as waiting:
            waiting.wait_for_trigger("session_opened")
            time.sleep(0.5)
            with frozen(holder) as since:
                delay = waiting.wait_for("Streaming") - since
    report("frozen holder", lease=LEASE, delay_s=delay)
    assert delay < LEASE + 1


def test_a_frozen_waiter_delays_the_next_by_at_most_the_lease(kept: Database) -> None:
    with keeper(kept) as holder:
        holder.wait_for("Streaming")
        with keeper(kept) as first:
            first.wait_for_trigger("session_opened")
            time.sleep(0.5)
            with keeper(kept) as second:
                second.wait_for_trigger("session_opened")
                time.sleep(0.5)
                with frozen(first):
                    holder.say("stop")
                    since = holder.wait_for("Idle")
                    delay = second.wait_for("Streaming") - since
    report("frozen waiter", lease=LEASE, delay_s=delay)
    assert delay < LEASE + 1


def test_a_keeper_frozen_in_backing_off_delays_the_next_by_at_most_the_lease(
    kept: Database,
) -> None:
    with RawHolder(kept.dsn, "s", "p") as rival, keeper(kept) as backing_off:
        backing_off.wait_for("BackingOff")
        with keeper(kept) as waiting:
            waiting.wait_for_trigger("session_opened")
            time.sleep(0.5)
            with frozen(backing_off) as since:
                rival.leave()
                delay = waiting.wait_for("Streaming") - since
    report("keeper frozen in BackingOff", lease=LEASE, delay_s=delay)
    assert delay < LEASE + 1


def test_a_waiter_does_not_hold_up_vacuum_nor_index_builds_nor_slots(kept: Database) -> None:
    lock_slice = 5.0
    kept.sql("CREATE TABLE other (id int PRIMARY KEY, v text)")
    kept.sql("INSERT INTO other SELECT g, 'x' FROM generate_series(1, 10000) g")
    with keeper(kept) as holder:
        holder.wait_for("Streaming")
        with keeper(kept, lock_slice=lock_slice, lease=10.0) as waiting:
            waiting.wait_for_trigger("session_opened")
            began = time.monotonic()
            kept_rows, index_times, slot_times = [], [], []
            while time.monotonic() - began < 120:
                kept.sql("DELETE FROM other WHERE id <= 5000")
                time.sleep(lock_slice)
                kept.sql("VACUUM other")
                kept_rows.append(_dead_rows(kept))
                index_times.append(
                    _timed(lambda: kept.sql("CREATE INDEX CONCURRENTLY i ON other (v)"))
                )
                slot_times.append(_timed(lambda: _make_and_drop_slot(kept)))
                kept.sql("DROP INDEX i")
                kept.sql("INSERT INTO other SELECT g, 'x' FROM generate_series(1, 5000) g")
    report(
        "waiter for 120 s",
        slice=lock_slice,
        dead_rows_left=max(kept_rows),
        worst_index_s=max(index_times),
        worst_slot_s=max(slot_times),
        rounds=len(kept_rows),
    )
    assert max(kept_rows) == 0
    assert max(index_times) < lock_slice + 1
    assert max(slot_times) < 1


def _dead_rows(database: Database) -> int:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
        row = connection.execute("SELECT dead_tuple_count FROM pgstattuple('other')").fetchone()
    assert row is not None
    return int(row[0])


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _make_and_drop_slot(database: Database) -> None:
    database.sql("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
    database.sql("SELECT pg_drop_replication_slot('theirs')")


@pytest.mark.parametrize("host", ["acknowledging", "holding_back"])
def test_a_fast_shutdown_is_not_held_up(own_server: Postgres, kept: Database, host: str) -> None:
    acknowledged = host == "acknowledging"
    with KeeperProcess(
        dsn=kept.dsn, slot="s", publication="p", lease=10.0, acknowledge=acknowledged
    ) as ours:
        ours.wait_for("Streaming")
        kept.sql("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 1000) g")
        time.sleep(0.5)
        took = _timed(lambda: own_server.stop("fast"))
        own_server.start()
        ours.wait_for("Streaming", after=ours.records[-1]["at"])
    report(f"fast shutdown, {'all' if acknowledged else 'not all'} acknowledged", seconds=took)
    assert took < (1 if acknowledged else 2)
