from __future__ import annotations

import copy
import pickle

import pytest

import fsm
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

ERRORS: list[SlotkeeperError] = [
    BadInput("'A' cannot be the name of a slot"),
    SpecError(["states.yaml:1:1: one", "states.yaml:2:1: two"]),
    SessionError(
        "refused",
        phase="start",
        sqlstate="55006",
        routine="ReplicationSlotAcquire",
        facts={"active_pid": 712},
    ),
    SlotFailed(
        "slot 'orders' is lost",
        error_class="data_loss",
        remedy="Create it anew.",
        phase="start",
        sqlstate="55000",
        facts={"slot": "orders"},
    ),
    LeaseLost("it is gone"),
    AckRefused("it was not read"),
    DecodeError("no such kind", message_name="Insert", offset=31),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_is_one_of_ours(error: SlotkeeperError) -> None:
    assert isinstance(error, fsm.SlotkeeperError)
    assert getattr(fsm, type(error).__name__) is type(error)


def test_what_a_file_may_not_say_is_bad_input() -> None:
    assert issubclass(SpecError, BadInput)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_with_all_its_fields(
    error: SlotkeeperError, protocol: int
) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  (what was just written)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_copied(error: SlotkeeperError) -> None:
    again = copy.copy(error)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_note_survives_pickling() -> None:
    error = BadInput("no")
    error.add_note("seen in test")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (what was just written)
    assert again.__notes__ == ["seen in test"]


def test_an_error_may_be_raised_after_pickling() -> None:
    again = pickle.loads(pickle.dumps(ERRORS[2]))  # noqa: S301  (what was just written)
    with pytest.raises(SessionError, match="refused"):
        raise again


def test_a_spec_error_says_every_problem_on_a_line_of_its_own() -> None:
    error = SpecError(["a.yaml:1:1: one", "a.yaml:2:1: two"])
    assert error.problems == ("a.yaml:1:1: one", "a.yaml:2:1: two")
    assert str(error).splitlines() == list(error.problems)


def test_a_session_error_has_phase_sqlstate_routine_and_facts() -> None:
    error = SessionError("refused", phase="lock")
    assert str(error) == "refused"
    assert (error.phase, error.sqlstate, error.routine, error.facts) == ("lock", None, None, {})


def test_the_facts_of_an_error_are_its_own() -> None:
    facts = {"slot": "orders"}
    session, failed = (
        SessionError("no", phase="start", facts=facts),
        SlotFailed("no", error_class="unknown", remedy="", facts=facts),
    )
    session.facts["pid"] = 1
    failed.facts["pid"] = 2
    assert facts == {"slot": "orders"}


@pytest.mark.parametrize("reason", ["slot 'orders' is lost", "slot 'orders' is lost."])
def test_a_failed_slot_says_reason_and_remedy(reason: str) -> None:
    error = SlotFailed(reason, error_class="data_loss", remedy="Create it anew.")
    assert str(error) == "slot 'orders' is lost. Create it anew."
    assert (error.error_class, error.reason, error.remedy) == (
        "data_loss",
        reason,
        "Create it anew.",
    )
    assert (error.phase, error.sqlstate, error.facts) == (None, None, {})


def test_a_decode_error_says_which_message_and_where() -> None:
    error = DecodeError("no such kind", message_name="Insert", offset=31)
    assert str(error) == "Insert message, byte 31: no such kind"
    assert (error.message_name, error.offset) == ("Insert", 31)
