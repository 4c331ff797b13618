from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fsm
from fsm import cli
from fsm.machine.loader import shipped, shipped_path
from fsm.postgres.lsn import format_lsn
from fsm.runtime.clock import RealClock
from fsm.runtime.journal import Record
from fsm.testing import MemoryServer
from fsm.testing.session import refusal

ROOT = Path(fsm.__file__).parent.parent
RUN = ["run", "host=memory", "--slot", "orders", "--publication", "orders"]
GOOD = shipped_path().read_text(encoding="utf-8")


def run_with(**options: str) -> list[str]:
    """Give the arguments of ``run``, some of them replaced."""
    dsn = options.pop("dsn", "host=memory")
    chosen = {"slot": "orders", "publication": "orders", **options}
    words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return ["run", dsn, *[word.replace("_", "-") if word[:2] == "--" else word for word in words]]


def called(arguments: list[str]) -> int:
    """Run the command; give its exit code, however it exits."""
    try:
        return cli.main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)


# --- used wrongly


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (run_with(slot="Orders"), "slot"),
        (run_with(slot=""), "slot"),
        (run_with(slot="a" * 64), "slot"),
        (run_with(publication=""), "publication"),
        (run_with(dsn="postgresql://app:secret@host:port/shop"), "DSN"),
        (run_with(dsn="host=h password=secret nonsense=1"), "DSN"),
        (run_with(lease="0"), "lease"),
        (run_with(lease="-3"), "lease"),
        (run_with(lease="nan"), "lease"),
        (run_with(lease="inf"), "lease"),
        (run_with(lease="1e12"), "lease"),
        (run_with(lock_slice="0"), "lock_slice"),
        (run_with(lock_slice="nan"), "lock_slice"),
        (run_with(lock_slice="inf"), "lock_slice"),
        (run_with(machine="/no/such/states.yaml"), "/no/such/states.yaml"),
        (["check", "/no/such/states.yaml"], "/no/such/states.yaml"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    arguments: list[str], word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert called(arguments) == cli.USAGE
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("slotkeeper: ")
    assert err.count("\n") == 1
    assert word in err
    assert "secret" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["stream"], "'stream'"),
        (["run", "host=memory"], "--slot"),
        (["run", "host=memory", "--slot", "orders"], "--publication"),
        (run_with(lease="soon"), "--lease"),
        (run_with(give_up_after="soon"), "--give-up-after"),
        ([*RUN, "--no-such-option=secret"], "--no-such-option"),
        (["run", "host=h", "password=secret", "--slot", "a", "--publication", "a"], "in quotes"),
    ],
)
def test_what_cannot_be_parsed_is_a_sentence_with_the_usage_and_exit_code_2(
    arguments: list[str], word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert called(arguments) == cli.USAGE
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("usage: slotkeeper")
    last = err.splitlines()[-1]
    assert last.startswith("slotkeeper")
    assert "error: " in last
    assert word in last
    assert "secret" not in err


def test_a_connection_string_in_the_place_of_the_command_is_not_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert called(["postgresql://app:secret@host/shop", "--slot", "orders"]) == cli.USAGE
    _, err = capfd.readouterr()
    assert "secret" not in err
    assert "comes after the command, such as run" in err


def test_a_machine_file_with_problems_is_not_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "states.yaml"
    path.write_text("version: 2\n", encoding="utf-8")
    assert called(run_with(machine=str(path))) == cli.USAGE
    _, err = capfd.readouterr()
    assert f"{path}:1:" in err
    assert "Traceback" not in err


# --- check, schema, version


def test_the_shipped_file_holds(capfd: pytest.CaptureFixture[str]) -> None:
    assert called(["check"]) == cli.OK
    out, err = capfd.readouterr()
    assert err == ""
    rows = len(shipped().transitions)
    assert out == f"{shipped_path()}: holds (6 states, {rows} rows)\n"


def test_a_good_file_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert called(["check", str(path)]) == cli.OK
    assert capfd.readouterr().out.startswith(f"{path}: holds")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("version: 1\n", "version: 1\nsurprise: 1\n", "surprise"),
        ("trigger: start, ", "trigger: strat, ", "strat"),
        ("initial_delay: 0.5", "initial_delay: often", "often"),
    ],
)
def test_a_file_that_says_what_it_may_not_is_refused_with_its_places(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, word: str
) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    path = tmp_path / "states.yaml"
    path.write_text(text, encoding="utf-8")
    assert called(["check", str(path)]) == cli.FAILED
    out, err = capfd.readouterr()
    assert out == ""
    line = 1 + text[: text.index(word)].count("\n")
    assert any(one.startswith(f"{path}:{line}:") for one in err.splitlines())
    assert "Traceback" not in err


def test_all_problems_are_said_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "states.yaml"
    text = GOOD.replace("version: 1\n", "version: 1\none: 1\ntwo: 2\n", 1)
    path.write_text(text, encoding="utf-8")
    assert called(["check", str(path)]) == cli.FAILED
    _, err = capfd.readouterr()
    assert "'one'" in err
    assert "'two'" in err


def test_a_file_that_reads_well_and_does_not_hold_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = next(line for line in GOOD.splitlines() if "id: slot_is_taken" in line)
    spinning = row.replace("dest: BackingOff", "dest: Acquiring, do: [inspect_slot]")
    assert spinning != row
    path = tmp_path / "states.yaml"
    path.write_text(GOOD.replace(row, spinning, 1), encoding="utf-8")
    assert called(["check", str(path)]) == cli.FAILED
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{path}: " in err
    assert "Acquiring --error_wait--> Acquiring" in err


@pytest.mark.parametrize("text", ["", "- 1\n", "version: [\n", "\t"])
def test_what_is_no_machine_at_all_is_refused_with_a_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "states.yaml"
    path.write_text(text, encoding="utf-8")
    assert called(["check", str(path)]) == cli.FAILED
    _, err = capfd.readouterr()
    assert err.startswith(f"{path}:")
    assert "Traceback" not in err


def test_the_schema_is_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert called(["schema"]) == cli.OK
    schema = json.loads(capfd.readouterr().out)
    assert set(schema["properties"]) >= {"version", "states", "transitions", "policies"}


def test_the_version_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert called(["--version"]) == cli.OK
    assert capfd.readouterr().out == f"slotkeeper {fsm.__version__}\n"


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fsm", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"slotkeeper {fsm.__version__}\n"


def test_the_command_exits_with_its_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fsm", "check", "/no/such/file"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == cli.USAGE
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fsm", "schema"],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == cli.FAILED
    assert done.stderr == ""


# --- run


class Running:
    """The command on a server in memory, in real time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = MemoryServer(RealClock())
        self.keepers: list[fsm.Keeper] = []
        self.when: dict[str, Callable[[], None]] = {}
        monkeypatch.setattr(cli, "Keeper", self._make)

    def _make(self, *arguments: Any, **choices: Any) -> fsm.Keeper:
        keeper = fsm.Keeper(*arguments, **choices, new_session=self.server.session)
        keeper.journal.listen(self._look)
        self.keepers.append(keeper)
        return keeper

    def _look(self, record: Record) -> None:
        action = self.when.pop(record.dest, None) if record.state != record.dest else None
        if action is not None:
            # what the step asks for is done first
            asyncio.get_running_loop().call_later(0.05, action)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    return Running(monkeypatch)


def signal_self(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_changes_are_written_as_json_and_a_signal_stops_gracefully(
    running: Running, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    commit_lsn = running.server.commit({"id": "1"}, {"id": "2"})
    running.when["Streaming"] = signal_self(number)
    assert called(RUN) == cli.OK
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["new"] for line in lines] == [{"id": "1"}, {"id": "2"}]
    assert {line["kind"] for line in lines} == {"insert"}
    assert {line["commit_lsn"] for line in lines} == {format_lsn(commit_lsn)}
    assert running.server.slot_facts is not None
    assert running.server.slot_facts.confirmed_flush_lsn == running.server.wal_position
    assert running.server.sessions == []
    assert "slotkeeper: slot 'orders' on host=memory" in err
    assert "slotkeeper: Acquiring -> Streaming (stream_started)" in err
    assert "slotkeeper: Streaming -> Idle (stop)" in err


def test_text_of_any_language_is_written_as_it_is(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    running.server.commit({"id": "gr\u00fc\u00df \u65e5\u672c"})
    running.when["Streaming"] = signal_self(signal.SIGTERM)
    assert called(RUN) == cli.OK
    assert "gr\u00fc\u00df \u65e5\u672c" in capfd.readouterr().out


def test_a_second_signal_stops_at_once(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    def both() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    running.when["Streaming"] = both
    assert called(RUN) == cli.OK
    assert running.server.sessions == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_failed_slot_is_exit_code_1_with_reason_and_remedy(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    running.server.publication_exists = False
    assert called(RUN) == cli.FAILED
    out, err = capfd.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("slotkeeper: Failed, configuration: publication 'orders'")
    assert "CREATE PUBLICATION" in last
    assert "Traceback" not in err


@pytest.mark.parametrize(("options", "code"), [([], cli.FAILED), (["--create-slot"], cli.OK)])
def test_a_missing_slot_is_created_only_when_asked_to(
    running: Running, capfd: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    running.server.slot_facts = None
    running.when["Streaming"] = signal_self(signal.SIGTERM)
    assert called([*RUN, *options]) == code
    assert (running.server.slot_facts is not None) is bool(options)


def test_an_error_that_is_retried_says_when_and_why(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    running.server.rival_takes_slot(pid=712)
    running.when["BackingOff"] = signal_self(signal.SIGTERM)
    assert called(RUN) == cli.OK
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "-> BackingOff" in one]
    assert "attempt 1, contention: next try in " in line
    assert "slot 'orders' is held by pid 712, app 'etl'" in line


def test_giving_up_is_exit_code_1_and_says_why(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    running.server.refuse("open", refusal("connect", None, errno=111), times=100)
    assert called([*RUN, "--give-up-after", "0.2"]) == cli.FAILED
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("slotkeeper: gave up after 0.2 s. ")
    assert "transient_network" in last


def test_a_password_is_not_shown_when_it_begins(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    running.when["Streaming"] = signal_self(signal.SIGTERM)
    assert called(run_with(dsn="postgresql://app:secret@host/shop")) == cli.OK
    _, err = capfd.readouterr()
    assert "host=host" in err
    assert "secret" not in err
