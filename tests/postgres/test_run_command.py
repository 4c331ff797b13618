"""``slotkeeper run`` against a real server: its lines, its signals, its end."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from fsm.postgres.lsn import parse_lsn
from tests.support.command import Command, environment
from tests.support.source import Source, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def run(source: Source, *options: str, reading: bool = True) -> Command:
    aim = ["--slot", source.slot, "--publication", source.publication]
    return Command("run", source.dsn, *aim, *options, reading=reading)


def libpq_environment(source: Source) -> Mapping[str, str]:
    server = source.database.server
    return {
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGDATABASE": source.database.name,
    }


def test_each_kind_of_change_is_a_json_object_on_a_line_of_its_own(source: Source) -> None:
    sql = source.database.sql
    sql("ALTER TABLE t ALTER x SET STORAGE EXTERNAL, ADD n numeric")
    with run(source, "--create-slot") as command:
        command.until_streaming()
        sql(
            "INSERT INTO t VALUES"
            " (1, E'two\\nlines \"ü\"', 1.50), (2, repeat('long', 5000), 'NaN'), (3, NULL, NULL)"
        )
        sql("UPDATE t SET n = 2 WHERE id = 2")
        sql("UPDATE t SET id = 4 WHERE id = 3")
        sql("DELETE FROM t WHERE id = 1")
        sql("TRUNCATE t")
        command.until(lambda one: len(one.out) >= 7)
        changes = command.changes
    inserted, long, empty, updated, moved, deleted, truncated = changes
    assert [change["kind"] for change in changes] == [
        *("insert",) * 3, "update", "update", "delete", "truncate",
    ]  # fmt: skip
    assert inserted["new"] == {"id": 1, "x": 'two\nlines "ü"', "n": "1.50"}
    assert (inserted["schema"], inserted["table"], inserted["old"]) == ("public", "t", None)
    assert long["new"]["n"] == "NaN"
    assert empty["new"] == {"id": 3, "x": None, "n": None}
    assert (updated["new"], updated["unchanged"]) == ({"id": 2, "n": "2"}, ["x"])
    assert (moved["old"], moved["new"]["id"]) == ({"id": 3}, 4)
    assert (deleted["old"], deleted["new"]) == ({"id": 1}, None)
    assert truncated["tables"] == ["public.t"]
    assert {change["xid"] for change in changes[:3]} == {inserted["xid"]}
    positions = [parse_lsn(change["commit_lsn"]) for change in changes]
    assert positions == sorted(positions)
    assert len(set(positions)) == 5
    assert all(change["commit_time"].endswith("+00:00") for change in changes)


def test_half_a_surrogate_pair_in_json_is_written_as_an_escape(source: Source) -> None:
    source.database.sql("ALTER TABLE t ADD j json")
    with run(source, "--create-slot") as command:
        command.until_streaming()
        source.database.sql(r"""INSERT INTO t VALUES (1, 'ü', '"\ud800"')""")
        source.insert(2, 2)
        command.until(lambda one: len(one.out) >= 2)
    assert r'"\ud800"' in command.out[0]
    assert command.changes[0]["new"] == {"id": 1, "x": "ü", "j": "\ud800"}


def test_its_output_can_be_a_file(source: Source, tmp_path: Path) -> None:
    source.create_slot()
    source.insert_each(1, 300)
    file = tmp_path / "changes.jsonl"
    words = ["-m", "fsm", "run", source.dsn, "--slot", source.slot]
    with file.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *words, "--publication", source.publication],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
    try:
        assert eventually(lambda: file.read_bytes().count(b"\n") == 300)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["new"]["id"] for line in lines] == list(range(1, 301))


def test_a_slot_is_only_created_where_that_is_asked_for(source: Source) -> None:
    with run(source) as command:
        assert command.exit_code() == 1
        assert "--create-slot" in command.err[-1]
    assert source.slot_row() == {}
    with run(source, "--create-slot") as command:
        command.until_streaming()
        assert source.slot_row()["active"]


def test_without_a_dsn_libpqs_environment_says_where_to_connect(source: Source) -> None:
    with Command(
        "run", "--slot", source.slot, "--publication", source.publication, "--create-slot",
        env=libpq_environment(source),
    ) as command:  # fmt: skip
        command.until_streaming()
        source.insert(1, 1)
        command.until(lambda one: one.out)
        assert command.changes[0]["new"]["id"] == 1


def test_several_publications_can_be_named(source: Source) -> None:
    second = source.database.unique("publication")
    source.database.sql("CREATE TABLE u (id bigint PRIMARY KEY)")
    source.database.sql(f"CREATE PUBLICATION {second} FOR TABLE u")
    with run(source, "--publication", second, "--create-slot") as command:
        command.until_streaming()
        source.insert(1, 1)
        source.database.sql("INSERT INTO u VALUES (2)")
        command.until(lambda one: len(one.out) >= 2)
        assert [change["table"] for change in command.changes] == ["t", "u"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_signal_stops_it_gracefully(source: Source, number: signal.Signals) -> None:
    with run(source, "--create-slot") as command:
        command.until_streaming()
        source.insert_each(1, 50)
        command.until(lambda one: len(one.out) >= 50)
        end = source.wal_position()
        command.send(number)
        assert command.exit_code() == 0
        assert "-> Idle" in command.err[-1]
        assert "Traceback" not in command.output
    assert eventually(source.is_free)
    assert source.confirmed() >= parse_lsn(command.changes[-1]["commit_lsn"])
    assert source.confirmed() <= end
    with run(source) as again:
        again.until_streaming()
        source.insert(51, 51)
        again.until(lambda one: one.out)
        assert [change["new"]["id"] for change in again.changes] == [51]


def test_a_signal_in_mid_stream_loses_and_repeats_nothing(source: Source) -> None:
    source.create_slot()
    source.insert_each(1, 20_000, at_once=10)
    seen: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        with run(source) as command:
            command.until(lambda one: len(one.out) > 1000)
            command.send(number)
            assert command.exit_code() == 0
            seen += whole_transactions(command, 10)
    with run(source) as command:
        rest = 20_000 - len(seen)
        command.until(lambda one: len(one.out) >= rest)
        seen += [change["new"]["id"] for change in command.changes]
    assert seen == list(range(1, 20_001))


def whole_transactions(command: Command, rows: int) -> list[int]:
    """The ids of what it has written, without a last transaction that was cut short."""
    ids = [change["new"]["id"] for change in command.changes]
    return ids[: len(ids) // rows * rows]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_signal_ends_a_wait_at_once(source: Source, number: signal.Signals) -> None:
    source.create_slot()
    with run(source) as holder:
        holder.until_streaming()
        with run(source) as waiter:
            waiter.until(lambda _: source.lock_pids(granted=False))
            began = time.monotonic()
            waiter.send(number)
            assert waiter.exit_code() == 0
            assert time.monotonic() - began < 5
        # The server looks once a second whether a client that waits is still there.
        assert eventually(lambda: source.lock_pids(granted=False) == [])


def test_while_it_waits_it_says_for_whom(source: Source) -> None:
    source.create_slot()
    with run(source) as holder:
        holder.until_streaming()
        pid = source.slot_row()["active_pid"]
        with run(source) as waiter:
            waiter.until(lambda one: any(f"pid {pid}" in line for line in tuple(one.err)))
            assert any("waiting for the lock" in line for line in waiter.err)


def test_one_signal_is_enough_even_where_nobody_reads_its_output(source: Source) -> None:
    source.create_slot()
    source.insert_each(1, 5000)
    with run(source, reading=False) as command:
        command.until_streaming()
        time.sleep(0.5)
        command.send(signal.SIGTERM)
        assert command.exit_code(seconds=10) == 0
        assert "Traceback" not in command.output
    assert eventually(source.is_free)


def test_a_signal_waits_for_what_is_being_written(source: Source) -> None:
    """One large transaction is on its way when the signal comes: it is written to its end."""
    source.create_slot()
    source.insert(1, 3000)
    source.insert(3001, 3001)
    with run(source) as command:
        command.until(lambda one: one.out)
        command.send(signal.SIGTERM)
        assert command.exit_code() == 0
        ids = [change["new"]["id"] for change in command.changes]
    assert ids[:3000] == list(range(1, 3001))
    source.insert(3002, 3002)
    with run(source) as again:
        again.until(lambda one: len(one.out) >= 3002 - len(ids))
        ids += [change["new"]["id"] for change in again.changes]
    assert ids == list(range(1, 3003))


def test_a_second_signal_ends_it_although_the_server_does_not_answer(source: Source) -> None:
    source.create_slot()
    with run(source) as command:
        command.until_streaming()
        pid = source.slot_row()["active_pid"]
        source.database.allow_leftovers()
        signal_server(pid, signal.SIGSTOP)
        try:
            command.send(signal.SIGTERM)
            command.send(signal.SIGTERM)
            assert command.exit_code(seconds=5) == 0
            assert "Traceback" not in command.output
        finally:
            signal_server(pid, signal.SIGCONT)
    assert eventually(source.is_free)


def test_one_signal_is_enough_even_where_the_server_does_not_answer(source: Source) -> None:
    source.create_slot()
    with run(source) as command:
        command.until_streaming()
        pid = source.slot_row()["active_pid"]
        source.database.allow_leftovers()
        signal_server(pid, signal.SIGSTOP)
        try:
            command.send(signal.SIGTERM)
            assert command.exit_code(seconds=10) == 0
        finally:
            signal_server(pid, signal.SIGCONT)
    assert eventually(source.is_free)


def signal_server(pid: int, number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{number.name.removeprefix('SIG')}", str(pid)], check=True)


def test_a_reader_that_leaves_ends_it_and_frees_the_slot(source: Source) -> None:
    source.create_slot()
    source.insert_each(1, 2000)
    words = [sys.executable, "-m", "fsm", "run", source.dsn, "--slot", source.slot]
    pipe = f"{shlex.join([*words, '--publication', source.publication])} | head -1"
    done = subprocess.run(
        ["bash", "-c", pipe],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert eventually(source.is_free)


def test_what_the_reader_did_not_get_is_not_confirmed(source: Source) -> None:
    source.create_slot()
    before = source.confirmed()
    with run(source, reading=False) as command:
        command.until_streaming()
        assert command.process.stdout is not None
        command.process.stdout.close()
        source.insert(1, 1)
        assert command.exit_code() == 1
        assert "Traceback" not in command.output
    with run(source) as command:
        command.until(lambda one: one.out)
        assert command.changes[0]["new"]["id"] == 1
    assert before <= source.confirmed()


def test_a_reader_that_is_slow_does_not_cost_the_session(source: Source) -> None:
    """The pipe is full for longer than the lease, and the slot stays with the same backend."""
    source.create_slot()
    source.insert_each(1, 5000, at_once=10)
    with run(source, "--lease", "1", reading=False) as command:
        command.until_streaming()
        pid = source.slot_row()["active_pid"]
        time.sleep(4)
        assert source.slot_row()["active_pid"] == pid
        out = command.process.stdout
        assert out is not None
        lines = [out.readline() for _ in range(5000)]
        assert all('"kind": "insert"' in line for line in lines)
        assert sum("-> Streaming" in line for line in command.err) == 1


def test_a_killed_process_leaves_nothing_behind(source: Source) -> None:
    source.create_slot()
    with run(source) as command:
        command.until_streaming()
        command.send(signal.SIGKILL)
        command.process.wait()
        assert eventually(source.is_free)


def test_the_session_is_known_by_its_name(source: Source) -> None:
    source.create_slot()
    with run(source) as command:
        command.until_streaming()
        with psycopg.connect(source.dsn) as connection:
            found = connection.execute(
                "SELECT application_name FROM pg_stat_replication WHERE pid = %s",
                [source.slot_row()["active_pid"]],
            ).fetchall()
    assert found == [("slotkeeper",)]
