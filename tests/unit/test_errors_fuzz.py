"""The classifier and its reader against anything."""

from __future__ import annotations

from typing import Any, Final, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm.errors import Phase, SessionError, SpecError
from fsm.postgres.errors import (
    FACTS,
    PLACEHOLDERS,
    SHIPPED,
    Action,
    Classifier,
    ErrorClass,
    LocalRule,
    MiddlewareRule,
    Rule,
    ServerRule,
    parse,
)

CLASSIFIER: Final = Classifier.shipped()
RULES: Final = CLASSIFIER.rules
CODES: Final = sorted({code for r in RULES if isinstance(r, ServerRule) for code in r.sqlstate})
ROUTINES: Final = sorted({name for r in RULES if isinstance(r, ServerRule) for name in r.routine})
TEXTS: Final = sorted(
    {text for r in RULES if isinstance(r, MiddlewareRule | LocalRule) for text in r.text}
)
VALUES_IN_RULES: Final = sorted(
    {value for rule in RULES for values in rule.facts.values() for value in values}, key=repr
)

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.sampled_from(VALUES_IN_RULES),
)
facts = st.dictionaries(
    st.one_of(
        st.sampled_from([*FACTS, *PLACEHOLDERS, "finding", "active_pid"]), st.text(max_size=8)
    ),
    st.one_of(plain, st.lists(plain, max_size=3), st.tuples(plain, plain)),
    max_size=6,
)
messages = st.one_of(st.text(max_size=40), st.sampled_from(TEXTS))
sqlstates = st.one_of(
    st.none(),
    st.sampled_from(CODES),
    st.from_regex(r"[0-9A-Z]{5}", fullmatch=True),
    st.text(max_size=6),
)
routines = st.one_of(st.none(), st.sampled_from(ROUTINES), st.text(max_size=12))


@st.composite
def errors(draw: st.DrawFn) -> SessionError:
    error = SessionError(
        draw(messages),
        phase=draw(st.sampled_from(get_args(Phase))),
        sqlstate=draw(sqlstates),
        routine=draw(routines),
        facts=draw(facts),
    )
    error.__cause__ = draw(
        st.sampled_from([None, OSError(13, "x"), ValueError("x"), SessionError("x", phase="ssl")])
    )
    return error


@given(error=errors())
@settings(max_examples=500)
def test_any_error_gets_a_known_class_a_known_action_and_a_remedy(error: SessionError) -> None:
    verdict = CLASSIFIER.classify(error)
    assert verdict.error_class in get_args(ErrorClass)
    assert verdict.action in get_args(Action)
    assert verdict.reason.strip()
    assert verdict.remedy.strip()
    assert verdict.rule in {rule.id for rule in RULES} | {"no_rule"}


@given(error=errors())
def test_the_same_error_gets_the_same_verdict(error: SessionError) -> None:
    before = dict(error.facts)
    assert CLASSIFIER.classify(error) == CLASSIFIER.classify(error)
    assert error.facts == before


@given(error=errors(), routine=st.sampled_from([*ROUTINES, "_"]), message=messages)
def test_where_a_server_spoke_its_text_does_not_matter(
    error: SessionError, routine: str, message: str
) -> None:
    error.sqlstate, error.routine = error.sqlstate or "XX000", routine
    error.facts.pop("message", None)
    other = SessionError(
        message, phase=error.phase, sqlstate=error.sqlstate, routine=routine, facts=error.facts
    )
    other.__cause__ = error.__cause__
    assert CLASSIFIER.classify(error).rule == CLASSIFIER.classify(other).rule


@given(code=st.from_regex(r"[0-9A-Z]{5}", fullmatch=True), phase=st.sampled_from(get_args(Phase)))
def test_nothing_that_a_server_says_by_a_code_alone_is_ignored_but_a_goal_reached(
    code: str, phase: Phase
) -> None:
    verdict = CLASSIFIER.classify(SessionError("m", phase=phase, sqlstate=code, routine="_"))
    if verdict.action == "ignore":
        assert (code, phase) in {
            ("42704", "drop_slot"),
            ("42710", "create_slot"),
            ("42710", "publication_check"),
        }


LINES: Final = SHIPPED.read_text(encoding="utf-8").splitlines()
START: Final = next(i for i, line in enumerate(LINES) if line.startswith("version"))
SHORT: Final = LINES[START : START + 40]


@st.composite
def broken_files(draw: st.DrawFn) -> str:
    lines = list(SHORT)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        change: Any = draw(st.sampled_from(["drop", "repeat", "swap", "text"]))
        if change == "drop" and len(lines) > 1:
            del lines[at]
        elif change == "repeat":
            lines.insert(at, lines[at])
        elif change == "swap":
            lines[at], lines[0] = lines[0], lines[at]
        else:
            lines[at] = draw(st.text(max_size=20))
    return "\n".join(lines)


@given(text=st.one_of(broken_files(), st.text(max_size=60)))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_file_is_read_or_refused_with_its_problems(text: str) -> None:
    problems: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    try:
        rules = parse(text, "rules.yaml")
    except SpecError as error:
        problems = error.problems or ("refused without a problem",)
    assert all(problem.startswith("rules.yaml:") for problem in problems)
    assert Classifier(rules).unreachable_rules() == ()
