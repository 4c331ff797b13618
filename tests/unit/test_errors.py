"""The shipped rules against cases met on real servers, and the reader against wrong files."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from pathlib import Path
from typing import Any, Final, get_args

import psycopg
import pytest

from fsm.errors import AckRefused, BadInput, DecodeError, LeaseLost, Phase, SessionError, SpecError
from fsm.postgres.errors import (
    SHIPPED,
    Classifier,
    ErrorClass,
    FindingRule,
    LocalRule,
    MiddlewareRule,
    ServerRule,
    load,
    parse,
)
from fsm.runtime.session import Holder

DATA: Final = Path(__file__).with_name("data")
CASES: Final = [
    json.loads(line)
    for line in (DATA / "errors_open.jsonl").read_text(encoding="utf-8").splitlines()
]
SQLSTATES: Final = [
    line.split("\t")[0]
    for line in (DATA / "errcodes.tsv").read_text(encoding="utf-8").splitlines()[1:]
]
PHASES: Final = get_args(Phase)

# What a case tells beside the error's fields, and the fact by which a session tells it.
SAME_NAME: Final = {
    "attempt",
    "cancel_requested",
    "eof",
    "host_kind",
    "previously_streamed",
    "server_spoke",
    "session",
}
OTHER_NAME: Final = {
    "last_conn_status": "conn_status",
    "probe_tls": "tls_probe",
    "pg_is_in_recovery": "in_recovery",
}
PROBED: Final = {
    "active",
    "active_pid",
    "invalidation_reason",
    "max_wal_senders",
    "own_previous_pid",
    "same_database",
    "slot_type",
    "wal_status",
}
# Words for people, or what the other fields say as well.
TOLD_OTHERWISE: Final = {
    "note",
    "server_version",
    "detail",
    "diag_context",
    "middleware",
    "missing_fields",
}
LINUX_RESOLVER_CODES: Final = {-2: socket.EAI_NONAME, -3: socket.EAI_AGAIN}


def facts_of(context: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for key, value in context.items():
        if key in SAME_NAME | PROBED:
            facts[key] = value
        elif key == "last_conn_status":
            facts["conn_status"] = "BAD" if value == "BAD_AT_START" else value
        elif key in OTHER_NAME:
            facts[OTHER_NAME[key]] = value
        elif key in {"probe", "conninfo"}:
            facts |= facts_of(value)
        elif key == "target_session_attrs":
            facts[key] = value
        elif key == "gaierror_errno":
            facts[key] = LINUX_RESOLVER_CODES[value]
        elif key == "probe_errno":
            facts["errno"] = getattr(errno, value)
        elif key not in TOLD_OTHERWISE | {"psycopg_exception", "is_notice"}:
            raise AssertionError(f"this test does not know how a session tells '{key}'")
    return facts


def error_of(case: dict[str, Any]) -> SessionError:
    """Give the error that a session would raise in this case."""
    context = case["context"]
    facts = facts_of(context)
    if context.get("is_notice"):
        # The session raises what it found itself, since a warning ends nothing.
        return SessionError(
            case["message"], phase=case["phase"], facts={"finding": "publication_skipped"}
        )
    error = SessionError(
        case["message"],
        phase=case["phase"],
        sqlstate=case["sqlstate"],
        routine=case["routine"],
        facts=facts,
    )
    if name := context.get("psycopg_exception"):
        kind = getattr(psycopg, name, None) or getattr(psycopg.errors, name)
        error.__cause__ = kind(case["message"])
    return error


def verdict_on(
    sqlstate: str | None = None,
    routine: str | None = None,
    phase: Phase = "streaming",
    message: str = "said by the server",
    **facts: object,
) -> tuple[str, str]:
    return verdict_with(facts, sqlstate, routine, phase, message)


def verdict_with(
    facts: dict[str, object],
    sqlstate: str | None = None,
    routine: str | None = None,
    phase: Phase = "streaming",
    message: str = "said by the server",
) -> tuple[str, str]:
    error = SessionError(message, phase=phase, sqlstate=sqlstate, routine=routine, facts=facts)
    verdict = Classifier.shipped().classify(error)
    return verdict.error_class, verdict.action


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_case_met_on_a_real_server_gets_its_class_and_action(case: dict[str, Any]) -> None:
    verdict = Classifier.shipped().classify(error_of(case))
    expected = case["expected_class"], case["expected_action"]
    assert (verdict.error_class, verdict.action) == expected, verdict


@pytest.mark.parametrize("case", [c for c in CASES if c["routine"]], ids=lambda case: case["id"])
def test_the_text_of_a_server_changes_no_verdict(case: dict[str, Any]) -> None:
    all_texts = [
        text
        for rule in Classifier.shipped().rules
        if isinstance(rule, MiddlewareRule | LocalRule)
        for text in rule.text
    ]
    misleading = {**case, "message": " ".join(all_texts)}
    classify = Classifier.shipped().classify
    assert classify(error_of(misleading)).rule == classify(error_of(case)).rule


def test_only_rules_for_a_middleware_or_for_no_server_can_name_text() -> None:
    for kind in (FindingRule, ServerRule):
        assert "text" not in kind.model_fields


# XX000 is whatever the server's authors did not foresee: retried, within a bound, and all of it
# logged. The classes 00, 01 and 02 are no failures at all, so what sent one as such is not known.
UNDECIDED: Final = {"XX000"} | {code for code in SQLSTATES if code[:2] in {"00", "01", "02"}}


@pytest.mark.parametrize("phase", PHASES)
def test_every_sqlstate_of_a_server_is_decided(phase: Phase) -> None:
    unknown = {code for code in SQLSTATES if verdict_on(code, "_", phase)[0] == "unknown"}
    assert len(SQLSTATES) == 263
    assert unknown == UNDECIDED


def test_a_code_from_a_middleware_is_decided_as_the_servers_would_be() -> None:
    # pgbouncer says all that it says under 08P01, so without a known text nothing is known.
    unknown = {code for code in SQLSTATES if verdict_on(code, None, "startup")[0] == "unknown"}
    assert unknown == UNDECIDED - {"XX000"} | {"08P01"}


def test_a_sqlstate_that_nobody_has_defined_is_unknown_and_tried_again() -> None:
    assert verdict_on("ZZ999", "some_function") == ("unknown", "retry")


def test_rules_name_only_codes_that_exist() -> None:
    for rule in Classifier.shipped().rules:
        if isinstance(rule, ServerRule | MiddlewareRule):
            assert set(rule.sqlstate) <= set(SQLSTATES), rule.id
            assert set(rule.sqlstate_class) <= {code[:2] for code in SQLSTATES}, rule.id


def test_every_shipped_rule_can_decide() -> None:
    assert Classifier.shipped().unreachable_rules() == ()


def test_every_class_has_a_rule() -> None:
    assert {rule.error_class for rule in Classifier.shipped().rules} == set(get_args(ErrorClass))


def test_the_shipped_rules_are_read_once() -> None:
    assert Classifier.shipped() is Classifier.shipped()


FINDINGS: Final = {
    "slot_missing": ("configuration", "fail"),
    "publication_missing": ("configuration", "fail"),
    "slot_of_other_database": ("configuration", "fail"),
    "slot_of_other_plugin": ("configuration", "fail"),
    "slot_is_physical": ("configuration", "fail"),
    "slot_is_temporary": ("configuration", "fail"),
    "slot_lost": ("data_loss", "fail"),
    "slot_synced_on_standby": ("server_starting_or_stopping", "retry_long"),
    "server_stopping": ("server_starting_or_stopping", "retry"),
    "silence": ("transient_network", "retry"),
    "connect_timed_out": ("transient_network", "retry"),
    "acquire_timed_out": ("transient_network", "retry"),
    "answer_overdue": ("transient_network", "retry"),
    "pooler": ("configuration", "fail"),
    "lock_not_ours": ("fenced", "retry"),
    "publication_skipped": ("configuration", "fail"),
    "wal_level": ("configuration", "fail"),
    "divergence": ("divergence", "fail"),
    "hot_loop": ("hot_loop", "retry"),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_of_ours_is_decided_whatever_else_is_known(finding: str, phase: Phase) -> None:
    assert verdict_on(phase=phase, finding=finding) == FINDINGS[finding]
    more = verdict_on(phase=phase, finding=finding, eof=True, conn_status="STARTED", errno=13)
    assert more == FINDINGS[finding]


def test_a_slot_that_is_missing_is_named_with_the_statement_that_creates_it() -> None:
    error = SessionError("gone", phase="start", facts={"finding": "slot_missing", "slot": "orders"})
    verdict = Classifier.shipped().classify(error)
    assert verdict.reason == "slot 'orders' does not exist"
    assert "pg_create_logical_replication_slot('orders', 'pgoutput')" in verdict.remedy


def test_a_name_with_a_quote_cannot_leave_its_statement() -> None:
    facts = {"finding": "publication_missing", "publication": 'a" FOR ALL TABLES; --'}
    error = SessionError("gone", phase="publication_check", facts=facts)
    remedy = Classifier.shipped().classify(error).remedy
    assert 'CREATE PUBLICATION "a"" FOR ALL TABLES; --"' in remedy


def test_a_slot_that_vanished_after_we_streamed_is_data_loss() -> None:
    missing = verdict_on(phase="start", finding="slot_missing", previously_streamed=True)
    assert missing == ("data_loss", "fail")


def test_the_holder_of_a_slot_is_named() -> None:
    holder = Holder(712, application_name="etl")
    facts = {"slot": "orders", "holder": holder}
    error = SessionError("in use", phase="start", sqlstate="55006", routine="x", facts=facts)
    verdict = Classifier.shipped().classify(error)
    assert (verdict.error_class, verdict.action) == ("contention", "wait")
    assert verdict.reason == "slot 'orders' is held by pid 712, app 'etl'; the lock is ours"


def test_a_holder_of_whom_only_the_pid_is_known_is_named_by_it() -> None:
    error = SessionError("in use", phase="start", sqlstate="55006", facts={"active_pid": 712})
    assert "held by pid 712;" in Classifier.shipped().classify(error).reason


def test_what_is_not_known_reads_as_a_neutral_phrase() -> None:
    error = SessionError("in use", phase="start", sqlstate="55006", routine="x")
    verdict = Classifier.shipped().classify(error)
    assert verdict.reason == "the slot is held by another session; the lock is ours"


def test_every_sentence_reads_whole_without_any_fact() -> None:
    classify = Classifier.shipped().classify
    for code in SQLSTATES:
        verdict = classify(SessionError("m", phase="start", sqlstate=code, routine="_"))
        for sentence in (verdict.reason, verdict.remedy):
            assert "{" not in sentence
            assert "None" not in sentence
        assert verdict.remedy.endswith("."), verdict.rule


@pytest.mark.parametrize(
    ("sqlstate", "routine", "phase", "facts", "expected"),
    [
        # 14 and 15 hide every reason behind one routine; only the slot's row decides.
        ("55000", "StartLogicalReplication", "start", {}, "data_loss fail"),
        (
            "55000",
            "StartLogicalReplication",
            "start",
            {"slot_type": "physical"},
            "configuration fail",
        ),
        ("55000", "CreateDecodingContext", "start", {"same_database": False}, "configuration fail"),
        ("55000", "CreateDecodingContext", "start", {"wal_status": "lost"}, "data_loss fail"),
        (
            "55000",
            "ReplicationSlotAcquire",
            "start",
            {"invalidation_reason": "idle_timeout"},
            "data_loss fail",
        ),
        (
            "55000",
            "CreateDecodingContext",
            "start",
            {"synced": True, "in_recovery": True},
            "server_starting_or_stopping retry_long",
        ),
        ("57P01", "ProcessInterrupts", "streaming", {"wal_status": "lost"}, "data_loss fail"),
        (
            "57P01",
            "ProcessInterrupts",
            "streaming",
            {"wal_status": "reserved"},
            "server_starting_or_stopping retry",
        ),
        (
            "40001",
            "anything",
            "streaming",
            {"invalidation_reason": "conflicting"},
            "data_loss fail",
        ),
        (
            "25006",
            "PreventCommandIfReadOnly",
            "publication_check",
            {"in_recovery": False},
            "configuration fail",
        ),
        # One code, several routines.
        ("42501", "CheckMyDatabase", "startup", {}, "auth fail"),
        ("42501", "set_config_with_handle", "startup", {}, "configuration fail"),
        ("42501", "SaveSlotToPath", "streaming", {}, "resource_exhausted retry_long"),
        ("42501", "pg_terminate_backend", "start", {}, "contention wait"),
        ("58P01", "WalSndSegmentOpen", "streaming", {"attempt": 1}, "data_loss retry"),
        ("58P01", "WalSndSegmentOpen", "streaming", {"attempt": 3}, "data_loss fail"),
        ("58P01", "SnapBuildRestore", "streaming", {}, "resource_exhausted retry_long"),
        ("22012", "int4div", "streaming", {}, "configuration fail"),
        ("22012", "int4div", "lock", {}, "protocol_or_bug fail"),
        ("55000", "exec_replication_command", "start", {}, "server_starting_or_stopping retry"),
        # A fork's own routine falls back to what the code alone says.
        ("55006", "AuroraSlotAcquire", "start", {}, "contention wait"),
        ("53100", "AuroraWrite", "streaming", {}, "resource_exhausted retry_long"),
        # Our own cancel, and somebody else's.
        (
            "57014",
            "ProcessInterrupts",
            "streaming",
            {"cancel_requested": True},
            "shutdown_requested stop",
        ),
        ("57014", "ProcessInterrupts", "streaming", {}, "server_starting_or_stopping retry"),
        ("42710", "ReplicationSlotCreate", "create_slot", {}, "contention ignore"),
    ],
)
def test_routine_phase_and_the_slots_row_tell_one_code_apart(
    sqlstate: str, routine: str, phase: Phase, facts: dict[str, object], expected: str
) -> None:
    assert " ".join(verdict_with(facts, sqlstate, routine, phase)) == expected


@pytest.mark.parametrize(
    ("sqlstate", "message", "expected"),
    [
        ("08P01", "unsupported startup parameter: options", "configuration fail"),
        ("08P01", "query_wait_timeout", "resource_exhausted retry_long"),
        (
            "08P01",
            "server login has been failing, cached error: x",
            "server_starting_or_stopping retry",
        ),
        ("08P01", "SASL authentication failed", "auth retry_long"),
        ("08P01", "words that no rule knows", "unknown retry"),
        (
            "XX000",
            "(EMAXCONNSESSION) max clients reached in session mode",
            "resource_exhausted retry_long",
        ),
        ("XX000", "(ECIRCUITBREAKER) too many authentication errors", "auth retry_long"),
        ("XX000", "Your project exceeded the compute time quota", "configuration fail"),
        ("57P01", "terminating connection", "server_starting_or_stopping retry_long"),
        ("53300", "too many connections", "resource_exhausted retry_long"),
        # pgbouncer 1.24 passes on the code of the server, and none of its other fields.
        ("3D000", 'database "x" does not exist', "configuration fail"),
        ("57P03", "starting up", "server_starting_or_stopping retry"),
    ],
)
def test_what_a_middleware_says_is_told_apart(sqlstate: str, message: str, expected: str) -> None:
    assert " ".join(verdict_on(sqlstate, None, "startup", message)) == expected


@pytest.mark.parametrize(
    ("phase", "facts", "expected"),
    [
        (
            "connect",
            {"conn_status": "STARTED", "errno": errno.ECONNREFUSED},
            "transient_network retry",
        ),
        ("connect", {"errno": errno.EMFILE}, "resource_exhausted retry_long"),
        (
            "connect",
            {"conn_status": "BAD", "host_kind": "unix", "errno": errno.EACCES},
            "configuration fail",
        ),
        ("ssl", {"conn_status": "SSL_STARTUP", "eof": True}, "transient_network retry"),
        ("ssl", {"conn_status": "SSL_STARTUP"}, "configuration retry_long"),
        ("ssl", {"conn_status": "SSL_STARTUP", "tls_probe": "E"}, "resource_exhausted retry_long"),
        ("startup", {"conn_status": "AWAITING_RESPONSE", "eof": True}, "transient_network retry"),
        ("startup", {"conn_status": "AWAITING_RESPONSE", "needs_password": True}, "auth fail"),
        ("startup", {"conn_status": "AWAITING_RESPONSE"}, "unknown retry"),
        ("streaming", {"end_of_copy": True}, "server_starting_or_stopping retry"),
        ("streaming", {"eof": True}, "transient_network retry"),
        ("streaming", {"eof": False, "protocol": True}, "protocol_or_bug fail"),
        (
            "streaming",
            {"notice_sqlstate": "57P01", "eof": True},
            "server_starting_or_stopping retry",
        ),
        ("streaming", {}, "unknown retry"),
        ("lock", {"timeout": True}, "transient_network retry"),
        ("lock", {"stop_requested": True, "eof": True}, "shutdown_requested stop"),
        ("connect", {"dsn_function": True, "exception": "OSError"}, "handler retry"),
    ],
)
def test_a_failure_without_a_code_is_told_by_its_facts(
    phase: Phase, facts: dict[str, object], expected: str
) -> None:
    assert " ".join(verdict_with(facts, phase=phase)) == expected


def test_an_errno_is_the_same_by_name_and_by_number() -> None:
    assert verdict_on(phase="connect", errno="EMFILE") == verdict_on(
        phase="connect", errno=errno.EMFILE
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), "transient_network retry"),
        (TimeoutError(), "transient_network retry"),
        (OSError(errno.ENFILE, "too many files"), "resource_exhausted retry_long"),
        (PermissionError(errno.EACCES, "no"), "configuration fail"),
        (OSError("no number"), "transient_network retry"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "transient_network retry"),
        (socket.gaierror(socket.EAI_NONAME, "no"), "configuration retry_long"),
        (MemoryError(), "resource_exhausted retry_long"),
        (DecodeError("odd", message_name="Insert", offset=3), "protocol_or_bug fail"),
        (BadInput("the DSN is wrong"), "configuration fail"),
        (AckRefused("not read"), "handler retry"),
        (LeaseLost("lost"), "fenced retry"),
        (asyncio.CancelledError(), "shutdown_requested stop"),
        (KeyboardInterrupt(), "shutdown_requested stop"),
        (psycopg.errors.InvalidPassword("no"), "auth retry_long"),
        (ZeroDivisionError("odd"), "unknown retry"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_any_other_exception_is_classified_too(error: BaseException, expected: str) -> None:
    verdict = Classifier.shipped().classify(error)
    assert f"{verdict.error_class} {verdict.action}" == expected


def test_an_error_that_only_says_that_the_session_failed_before_means_what_failed_before() -> None:
    why = SessionError("ended", phase="streaming", facts={"end_of_copy": True})
    later = SessionError("the stream has ended", phase="standby_status")
    later.__cause__ = why
    classify = Classifier.shipped().classify
    assert classify(later) == classify(why)


def test_libpqs_words_about_a_connection_string_are_not_repeated() -> None:
    words = 'missing "=" after "hunter2" in connection info string'
    error = SessionError(words, phase="connect")
    error.__cause__ = psycopg.ProgrammingError(words)
    verdict = Classifier.shipped().classify(error)
    assert verdict.rule == "bad_connection_string"
    assert "hunter2" not in verdict.reason + verdict.remedy


# --- rules of the host ---

RULE: Final = """
    id: mine
    sqlstate: "55006"
    class: configuration
    action: fail
    reason: "mine: {slot}"
    remedy: "Ask me."
    seen: "here"
"""


def file_with(rule: str, section: str = "rules") -> str:
    lines = [line.strip() for line in rule.strip().splitlines()]
    return f"version: 1\n{section}:\n  - " + "\n    ".join(lines) + "\n"


def test_a_hosts_rule_comes_before_the_shipped_ones_and_leaves_the_others() -> None:
    classifier = Classifier.shipped().preceded_by(parse(file_with(RULE)))
    held = SessionError("m", phase="start", sqlstate="55006", routine="x", facts={"slot": "s"})
    other = SessionError("m", phase="start", sqlstate="53300", routine="x")
    assert classifier.classify(held).reason == "mine: slot 's'"
    assert classifier.classify(other) == Classifier.shipped().classify(other)


def test_without_any_rule_everything_is_unknown_and_tried_again() -> None:
    verdict = Classifier([]).classify(SessionError("odd", phase="lock", sqlstate="55006"))
    assert (verdict.error_class, verdict.action, verdict.rule) == ("unknown", "retry", "no_rule")
    assert "odd" in verdict.reason


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (file_with(RULE + "colour: red"), ":10:13: rule 'mine': unknown key 'colour'"),
        (file_with(RULE.replace('"55006"', "55006")), ":4:15: rule 'mine': a code that YAML reads"),
        (file_with(RULE.replace("55006", "5500")), ":4:15: rule 'mine': sqlstate: string should"),
        (
            file_with(RULE.replace("action: fail", "action: panic")),
            ":6:13: rule 'mine': action: 'panic' is not",
        ),
        (file_with(RULE.replace("class: conf", "class: Conf")), ":5:12: rule 'mine': class: 'Conf"),
        (
            file_with(RULE + "phase: starting"),
            ":10:12: rule 'mine': phase: 'starting' is not one of",
        ),
        (file_with(RULE + 'sqlstate: "55006"'), ":10:5: key 'sqlstate' stands here twice"),
        (file_with(RULE + 'sqlstate_class: "55"'), "'sqlstate' and 'sqlstate_class' exclude"),
        (file_with(RULE + "facts: {colour: red}"), "no fact is called 'colour'; there are attempt"),
        (
            file_with(RULE + "facts: {eof: []}"),
            ":10:18: rule 'mine': eof: value should have at least 1 item",
        ),
        (file_with(RULE.replace("{slot}", "{slto}")), "no placeholder is called '{slto}'"),
        (file_with(RULE.replace("{slot}", "{slot.x}")), "no placeholder is called '{slot.x}'"),
        (file_with(RULE.replace("{slot}", "{slot")), "cannot be filled in"),
        (file_with(RULE.replace('"Ask me."', '""')), "remedy: string should have at least 1"),
        (file_with(RULE.replace("seen:", "# seen:")), ":3:5: rule 'mine': 'seen' is missing"),
        (file_with(RULE + "text: words"), "unknown key 'text'"),
        (file_with(RULE, "middleware") + "    routine: x\n", "unknown key 'routine'"),
        (file_with(RULE, "local"), "unknown key 'sqlstate'"),
        (
            file_with(RULE.replace('sqlstate: "55006"', "text: words"), "local"),
            "'text' needs 'server_spoke: true'",
        ),
        (file_with(RULE.replace('sqlstate: "55006"', "")), "so it would match everything"),
        ("version: 2\n", ":1:10: version: '2' is not one of 1"),
        ("rules: []\n", "'version' is missing"),
        ("version: 1\nrule: []\n", "unknown key 'rule'"),
        ("", ":1:1: the file should begin with 'version: 1'"),
        ("version: [", "not YAML"),
        ("version: 1\nrules: &a\n  - *a\n", "rules.yaml:"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_problem(text: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "rules.yaml")
    assert any(problem in found for found in caught.value.problems), caught.value.problems
    assert all(found.startswith("rules.yaml:") for found in caught.value.problems)


def two(first: str, second: str) -> str:
    return file_with(first) + file_with(second).partition("rules:\n")[2]


def test_two_rules_with_one_id_are_refused() -> None:
    with pytest.raises(SpecError, match="rule 'mine': a rule before it has the same id"):
        parse(two(RULE, RULE.replace("55006", "55000")))


def test_two_rules_that_match_the_same_are_refused_even_in_part() -> None:
    wider = RULE.replace("id: mine", "id: wider").replace('"55006"', '["55000", "55006"]')
    with pytest.raises(SpecError, match="rule 'wider': rule 'mine' matches the same"):
        parse(two(RULE, wider))


def test_a_rule_that_others_always_precede_is_refused() -> None:
    by_phase = RULE.replace("id: mine", "id: by_phase") + f"phase: [{', '.join(PHASES)}]"
    anywhere = RULE.replace("id: mine", "id: anywhere") + "facts: {eof: true}\n"
    first = anywhere.replace("anywhere", "first") + f"phase: [{', '.join(PHASES)}]"
    assert parse(two(RULE, by_phase)), "an error outside of every phase is left for it"
    late = """
        id: late
        facts: {eof: true, timeout: true}
        class: unknown
        action: retry
        reason: "r"
        remedy: "m"
        seen: "s"
    """
    early = late.replace("late", "early").replace(", timeout: true", "")
    text = file_with(early, "local") + file_with(late, "local").partition("local:\n")[2]
    with pytest.raises(SpecError, match="rule 'late' can never decide"):
        parse(text)
    assert parse(two(anywhere, first))


def test_the_first_of_equally_narrow_rules_decides() -> None:
    one = RULE.replace("id: mine", "id: one") + "facts: {eof: true}"
    other = RULE.replace("id: mine", "id: other") + "facts: {timeout: true}"
    both = SessionError("m", phase="lock", sqlstate="55006", facts={"eof": True, "timeout": True})
    assert Classifier(parse(two(one, other))).classify(both).rule == "one"
    assert Classifier(parse(two(other, one))).classify(both).rule == "other"


def test_one_does_not_mean_true() -> None:
    rules = parse(file_with(RULE + "facts: {attempt: 1}"))
    ones = SessionError("m", phase="lock", sqlstate="55006", facts={"attempt": 1})
    trues = SessionError("m", phase="lock", sqlstate="55006", facts={"attempt": True})
    assert Classifier(rules).classify(ones).rule == "mine"
    assert Classifier(rules).classify(trues).rule == "no_rule"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read the rules file"):
        load(tmp_path / "none.yaml")


def test_the_shipped_file_stands_beside_its_reader() -> None:
    assert {rule.id for rule in load(SHIPPED)} == {rule.id for rule in Classifier.shipped().rules}
