from __future__ import annotations

import dataclasses
import json
import logging

import pytest

from fsm.runtime.journal import VERSION, Journal, Record


def _write(journal: Journal, trigger: str = "start") -> Record:
    return journal.write(
        wall=1_750_000_000.0, mono=1.0, visit=1, state="Idle", trigger=trigger, dest="Locking"
    )


def test_records_are_numbered_from_one_in_order() -> None:
    journal = Journal()
    assert [_write(journal).seq for _ in range(3)] == [1, 2, 3]
    assert [record.seq for record in journal] == [1, 2, 3]


def test_only_the_last_records_are_kept_and_their_numbers_go_on() -> None:
    journal = Journal(capacity=2)
    for _ in range(5):
        _write(journal)
    assert len(journal) == 2
    assert [record.seq for record in journal] == [4, 5]


def test_the_newest_record_is_at_hand() -> None:
    journal = Journal()
    assert journal.last is None
    record = _write(journal)
    assert journal.last is record


def test_a_record_is_plain_data_with_its_version() -> None:
    record = _write(Journal())
    data = json.loads(json.dumps(record.as_dict()))
    assert data["version"] == VERSION
    assert set(data) == {"version", *(one.name for one in dataclasses.fields(Record))}
    assert (data["state"], data["trigger"], data["dest"]) == ("Idle", "start", "Locking")


def test_version_1_has_the_fields_that_readers_count_on() -> None:
    promised = (
        "seq wall mono visit state trigger dest error_class action attempt delay facts detail"
    )
    assert set(promised.split()) <= {one.name for one in dataclasses.fields(Record)}


def test_a_record_cannot_be_changed() -> None:
    record = _write(Journal())
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.dest = "Idle"  # type: ignore[misc]  # that is what is tried


def test_a_listener_hears_each_record_until_it_stops() -> None:
    journal = Journal()
    heard: list[Record] = []
    _write(journal)
    stop = journal.listen(heard.append)
    second = _write(journal)
    stop()
    _write(journal)
    assert heard == [second]


def test_a_listener_may_stop_listening_while_it_is_told() -> None:
    journal = Journal()
    heard: list[str] = []

    def once(_: Record) -> None:
        heard.append("once")
        stop()

    stop = journal.listen(once)
    journal.listen(lambda _: heard.append("always"))
    _write(journal)
    _write(journal)
    assert heard == ["once", "always", "always"]


def test_a_listener_that_raises_disturbs_neither_journal_nor_other_listeners(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = Journal()
    heard: list[Record] = []

    def broken(_: Record) -> None:
        raise RuntimeError("listener broke")

    journal.listen(broken)
    journal.listen(heard.append)
    with caplog.at_level(logging.ERROR, "fsm.journal"):
        record = _write(journal)
    assert heard == [record]
    assert "a listener of the journal raised" in caplog.text
    assert "listener broke" in caplog.text


def test_reading_is_not_disturbed_by_writing() -> None:
    journal = Journal(capacity=2)
    _write(journal)
    _write(journal)
    seen = []
    for record in journal:
        seen.append(record.seq)
        _write(journal)
    assert seen == [1, 2]
