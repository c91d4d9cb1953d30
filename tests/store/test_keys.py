"""What a key, a tag and a prefix may be, and where a prefix ends."""

from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akv.errors import InvalidKeyError
from akv.store.keys import MAX_LENGTH, check_key, check_prefix, check_tag, prefix_end

CHECKS = [check_key, check_tag, check_prefix]
LAST = "\U0010ffff"
# few code points, among them every neighbour of a gap, so that random strings meet and differ
text = st.text(
    st.sampled_from(["\x00", "a", "b", "\x7f", "\ud7ff", "\ue000", "\uffff", "\U00010000", LAST]), max_size=6
)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture(params=CHECKS, ids=lambda check: check.__name__)
def check(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    "key", ["", "a", "a ", "ä", "a\u0308", "🎉", "%_", "\uffff", LAST, "x" * MAX_LENGTH, "ä" * 256]
)
def test_allowed_strings_come_back_as_they_are(check: Any, key: str) -> None:
    assert key == check(key)


class Name(StrEnum):
    LONG = "ä" * 257
    SHORT = "short"


def test_an_instance_of_a_subclass_of_str_is_returned_itself(check: Any) -> None:
    assert check(Name.SHORT) is Name.SHORT


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        (1, "must be a str, not int: convert"),
        (b"bytes", "must be a str, not bytes: convert"),
        (True, "must be a str, not bool: convert"),
        (1.5, "must be a str, not float: convert"),
        (["a"], "must be a str, not list: convert"),
        ("x" * 257, "has 257 characters, at most 256 fit: shorten"),
        ("🎉" * 257, "has 257 characters, at most 256 fit: shorten"),
        (Name.LONG, "has 257 characters, at most 256 fit: shorten"),
        ("a\0b", "NUL character, which databases refuse: remove or escape"),
        ("ä\0", "NUL character, which databases refuse: remove or escape"),
        ("\ud800", "lone surrogate, which UTF-8 cannot express: decode"),
        ("a\udfffb", "lone surrogate, which UTF-8 cannot express: decode"),
    ],
)
def test_what_a_database_cannot_hold_is_refused_with_a_remedy(check: Any, key: Any, remedy: str) -> None:
    with pytest.raises(InvalidKeyError, match=remedy) as caught:
        check(key)

    role = check.__name__.removeprefix("check_")
    assert str(caught.value).startswith(role)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("check", [check_key, check_tag])
def test_none_is_no_key_and_no_tag(check: Any) -> None:
    with pytest.raises(InvalidKeyError, match="not NoneType"):
        check(None)


def test_no_prefix_means_every_key() -> None:
    assert check_prefix(None) is None


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("a", "b"),
        ("user:", "user;"),
        ("%", "&"),
        ("\ud7ff", "\ue000"),
        ("\uffff", "\U00010000"),
        ("a" + LAST, "b"),
        ("a" + LAST + LAST, "b"),
        (LAST, None),
        (LAST + LAST, None),
        ("", None),
    ],
)
def test_a_prefix_ends_at_the_successor_of_its_last_code_point(prefix: str, end: str | None) -> None:
    assert end == prefix_end(prefix)


@given(prefix=text | any_text, rest=text | any_text)
def test_what_starts_with_a_prefix_lies_before_its_end(prefix: str, rest: str) -> None:
    end = prefix_end(prefix)

    assert prefix <= prefix + rest
    assert end is None or prefix + rest < end


@given(prefix=text | any_text, other=text | any_text)
def test_only_what_starts_with_a_prefix_lies_between_it_and_its_end(prefix: str, other: str) -> None:
    end = prefix_end(prefix)

    assert other.startswith(prefix) == (prefix <= other and (end is None or other < end))


@given(prefix=text | any_text)
def test_an_end_can_be_encoded(prefix: str) -> None:
    end = prefix_end(prefix)

    assert end is None or end.encode()
