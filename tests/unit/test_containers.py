from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from fsm.postgres.containers import array_of, array_of_boxes, multirange_of, range_of
from fsm.postgres.markers import OutOfRange
from fsm.postgres.values import converter_for

read_texts = array_of(None)
read_ints = array_of(int)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("{}", []),
        ("{a}", ["a"]),
        ("{NULL}", [None]),
        (r'{"a,b","c\"d",NULL,"NULL"}', ["a,b", 'c"d', None, "NULL"]),
        (r'{"","{}"," ","\\","a\\\\b","null"}', ["", "{}", " ", "\\", "a\\\\b", "null"]),
        ('{"line\nbreak","tab\t",\'}', ["line\nbreak", "tab\t", "'"]),
        ("{zażółć,🐘,a\u00a0b}", ["zażółć", "🐘", "a\u00a0b"]),
        ("{NULLS,nil}", ["NULLS", "nil"]),
        ('{{a,"b c"},{NULL,d}}', [["a", "b c"], [None, "d"]]),
        ("{{{a},{b}},{{c},{d}}}", [[["a"], ["b"]], [["c"], ["d"]]]),
        ("{{{{{{a}}}}}}", [[[[[["a"]]]]]]),
    ],
)
def test_an_array_is_a_list_with_none_for_null(text: str, items: list[Any]) -> None:
    assert read_texts(text) == items


def test_the_elements_are_read_by_their_own_type() -> None:
    assert read_ints("{{1,NULL},{3,-4}}") == [[1, None], [3, -4]]
    assert read_ints('{"1"}') == [1]


@pytest.mark.parametrize("text", ["[2:3]={5,6}", "[0:0][-1:0]={{1,2}}", "[-1:-1]={NULL}"])
def test_an_array_whose_first_index_is_not_1_keeps_its_text(text: str) -> None:
    found = read_ints(text)
    assert type(found) is OutOfRange
    assert found == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "{",
        "}",
        "{a",
        "a}",
        "{a}}",
        "{{a}",
        "{a} ",
        " {a}",
        "{a,}",
        "{,a}",
        "{,}",
        "{a,,b}",
        "{a b}",
        "{ a}",
        "{a\n}",
        '{"a}',
        '{a"b"}',
        '{"a"b}',
        '{"a""b"}',
        r"{a\b}",
        '{"a\\"}',
        "{a}{b}",
        "{a},{b}",
        "{{}}",
        "{{},{}}",
        "{{a},{b,c}}",
        "{{a},b}",
        "{a,{b}}",
        "{{a},NULL}",
        "{{{a}},{b}}",
        "{{{{{{{a}}}}}}}",
        "[2:3]",
        "[2:3]=",
        "[2:3]={",
        "[2:3]={a}}",
        "[2]={a}",
        "=[2:3]{a}",
        "{(1,1);(2,2)",
    ],
)
def test_text_that_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="array"):
        read_texts(text)


def test_an_element_that_cannot_be_read_refuses_the_array() -> None:
    read = converter_for("_int4")
    assert read is not None
    for text in ("{1,x}", "{1,''}", '{1,""}', "{{1},{null}}", "[0:1]={1,x}"):
        with pytest.raises(ValueError, match="no integer"):
            read(text)


def test_boxes_are_parted_by_semicolons() -> None:
    read = array_of_boxes()
    assert read("{(1,1),(0,0);NULL}") == ["(1,1),(0,0)", None]
    assert read("{{(1,1),(0,0)};{NULL}}") == [["(1,1),(0,0)"], [None]]
    with pytest.raises(ValueError, match="array"):
        read("{{(1,1),(0,0)},{NULL}}")


def test_a_long_element_is_read_whole() -> None:
    long = 'a"\\ ' * 200_000
    quoted = long.replace("\\", "\\\\").replace('"', '\\"')
    assert read_texts(f'{{"{quoted}",x}}') == [long, "x"]


Nested: TypeAlias = list[Any]


def write_array(items: Nested, delimiter: str = ",") -> str:
    """Write an array as array_out does."""
    if not items:
        return "{}"
    return "{" + delimiter.join(_write_item(item, delimiter) for item in items) + "}"


def _write_item(item: Any, delimiter: str) -> str:
    if item is None:
        return "NULL"
    if isinstance(item, list):
        return write_array(item, delimiter)
    text = str(item)
    if text and text.upper() != "NULL" and not set(text) & set('"\\{} \t\n\r\v\f' + delimiter):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# Texts in which the syntax's own characters are frequent.
texts = st.text() | st.text(alphabet='ab,;"\\{}()[] \n\tNUL')


@st.composite
def arrays(draw: st.DrawFn, elements: st.SearchStrategy[Any]) -> Nested:
    lengths = draw(st.lists(st.integers(1, 3), max_size=4))
    strategy = elements
    for length in lengths:
        strategy = st.lists(strategy, min_size=length, max_size=length)
    return draw(strategy) if lengths else []


@given(arrays(texts | st.none()))
def test_every_array_of_texts_reads_back(items: Nested) -> None:
    assert read_texts(write_array(items)) == items
    assert array_of_boxes()(write_array(items, ";")) == items


@given(arrays(st.integers() | st.none()))
def test_every_array_of_integers_reads_back(items: Nested) -> None:
    assert read_ints(write_array(items)) == items


@given(st.text(alphabet='{}{},,ab"\\ NUL[]:=1', max_size=20))
def test_what_is_read_as_an_array_is_written_the_same(text: str) -> None:
    """No text is read as an array that it is not.

    Quotes that were not needed are the one thing that need not come back.
    """
    with suppress(ValueError):
        found = read_texts(text)
        if isinstance(found, OutOfRange):
            assert found == text
        else:
            assert read_texts(write_array(found)) == found
            assert write_array(found).replace('"', "") == text.replace('"', "")


INTS = range_of(int)
TEXTS = range_of(None)


@pytest.mark.parametrize(
    ("text", "range_"),
    [
        ("empty", Range(empty=True)),
        ("[1,5)", Range(1, 5, "[)")),
        ("(1,5]", Range(1, 5, "(]")),
        ("[-1,-1]", Range(-1, -1, "[]")),
        ("(,)", Range(None, None, "()")),
        ("(,5)", Range(None, 5, "()")),
        ("[1,)", Range(1, None, "[)")),
        ('["1","5")', Range(1, 5, "[)")),
    ],
)
def test_a_range_has_the_bounds_of_its_text(text: str, range_: Range[int]) -> None:
    assert INTS(text) == range_


@pytest.mark.parametrize(
    ("text", "lower", "upper"),
    [
        ('["",a]', "", "a"),
        ('["a b","c,d"]', "a b", "c,d"),
        (r'["a\\b","c""d"]', r"a\b", 'c"d'),
        (r'["a\"b","\("]', 'a"b', "("),
        ('["""","("]', '"', "("),
        ("[{,}]", "{", "}"),
    ],
)
def test_the_bounds_of_a_range_are_unquoted(text: str, lower: str, upper: str) -> None:
    assert TEXTS(text) == Range(lower, upper, "[]")


def test_an_infinite_date_is_a_bound_and_no_missing_one() -> None:
    read = converter_for("daterange")
    assert read is not None
    found = read("[-infinity,infinity)")
    assert (found.lower, found.upper) == ("-infinity", "infinity")
    assert type(found.lower) is OutOfRange
    assert read("(,)").lower is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Empty",
        "empty ",
        "[",
        "[1",
        "[1,",
        "[1,2",
        "1,2)",
        "[1,2) ",
        " [1,2)",
        "[1, 2)",
        "[1,2,3)",
        "[1)",
        "[[1,2)",
        "{1,2}",
        "<1,2>",
        '["1,2)',
        '[1"2",3)',
        r"[\1,2)",
        "[1,2)[3,4)",
        "[x,2)",
        '["",2)',
    ],
)
def test_text_that_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|invalid literal"):
        INTS(text)


def write_range(range_: Range[Any]) -> str:
    """Write a range as range_out does."""
    if range_.isempty:
        return "empty"
    lower, upper = _write_bound(range_.lower), _write_bound(range_.upper)
    return f"{range_.bounds[0]}{lower},{upper}{range_.bounds[1]}"


def _write_bound(bound: Any) -> str:
    if bound is None:
        return ""
    text = str(bound)
    if text and not set(text) & set('"\\()[], \t\n\r\v\f'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'


def ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Range[Any]]:
    bound = st.none() | bounds
    brackets = st.sampled_from(["[)", "(]", "[]", "()"])
    return st.just(Range(empty=True)) | st.builds(Range, bound, bound, brackets)


@given(ranges(texts))
def test_every_range_of_texts_reads_back(range_: Range[str]) -> None:
    assert TEXTS(write_range(range_)) == range_


@given(ranges(st.integers()))
def test_every_range_of_integers_reads_back(range_: Range[int]) -> None:
    assert INTS(write_range(range_)) == range_


@given(st.lists(ranges(texts).filter(bool)))
def test_every_multirange_reads_back(items: list[Range[str]]) -> None:
    text = "{" + ",".join(map(write_range, items)) + "}"
    assert multirange_of(None)(text) == Multirange(items)


@given(arrays(ranges(texts) | st.none()))
def test_every_array_of_ranges_reads_back(items: Nested) -> None:
    def as_text(item: Any) -> Any:
        if isinstance(item, list):
            return [as_text(each) for each in item]
        return None if item is None else write_range(item)

    assert array_of(TEXTS)(write_array(as_text(items))) == items


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "}",
        "[1,2)",
        "{[1,2)",
        "{[1,2),}",
        "{,[1,2)}",
        "{[1,2)[3,4)}",
        "{[1,2), [3,4)}",
        "{empty}",
        "{[1,2)}}",
        "{}{}",
        "{[1,x)}",
    ],
)
def test_text_that_is_no_multirange_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"multirange|invalid literal"):
        multirange_of(int)(text)


@pytest.mark.parametrize("make", [array_of, range_of, multirange_of])
@given(text=st.text() | st.text(alphabet='{}[](),"\\ab1 =:'))
def test_no_text_raises_anything_but_value_error(make: Any, text: str) -> None:
    with suppress(ValueError):
        make(None)(text)
