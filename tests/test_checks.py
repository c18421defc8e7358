"""checks: one sentence with the argument, the accepted values and the value; and what the type checker leaves to it."""

import math
from dataclasses import dataclass

import pytest

from sightline.checks import check_choice, check_int, check_number, check_positive, is_int, is_number
from sightline.errors import RecipeError
from typechecker import check


@pytest.mark.parametrize(
    ("value", "integer", "number"),
    [(3, True, True), (3.0, False, True), (True, False, False), ("3", False, False), (None, False, False)],
)
def test_a_bool_is_no_number(value, integer, number):
    assert is_int(value) is integer
    assert is_number(value) is number


def test_values_in_the_range_are_returned():
    assert check_int("k", 3, 1, 3) == 3
    assert check_int("k", -7) == -7
    assert check_number("x", 0.5, 0, below=1) == 0.5
    assert check_number("x", 1, 0, 1) == 1
    assert check_positive("x", 1e-9) == 1e-9
    assert check_choice("size", 3, (3, 5)) == 3


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (lambda: check_int("k", 0, 1), "k must be a whole number of at least 1, not 0"),
        (lambda: check_int("k", 101, 1, 100), "k must be a whole number from 1 to 100, not 101"),
        (lambda: check_int("k", 10**6, 1, 100_000), "k must be a whole number from 1 to 100,000, not 1000000"),
        (lambda: check_int("k", 2.0), "k must be a whole number, not 2.0"),
        (lambda: check_int("k", True, 0), "k must be a whole number of at least 0, not True"),
        (lambda: check_number("x", "much"), "x must be a number, not 'much'"),
        (lambda: check_number("x", math.nan, 0, 1), "x must be a number from 0 to 1, not nan"),
        (lambda: check_number("x", 1, above=0, below=1), "x must be a number above 0 and below 1, not 1"),
        (lambda: check_number("x", 0.0001, 0.001, 1), "x must be a number from 0.001 to 1, not 0.0001"),
        (lambda: check_positive("x", math.inf), "x must be a number above 0, not inf"),
        (lambda: check_positive("x", 2, 1), "x must be a number above 0 and at most 1, not 2"),
        (lambda: check_choice("fill", "egde", ("zero", "edge")), "fill must be one of zero, edge, not 'egde'."),
    ],
)
def test_the_message_names_argument_range_and_value(failing, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the message is compared below
        failing()
    assert str(caught.value).startswith(message)


def test_an_error_that_users_read_is_a_sentence():
    with pytest.raises(RecipeError, match=r"^depth must be a whole number of at least 2, not 1\.$"):
        check_int("depth", 1, 2, error=RecipeError)


# the type checker of the tests


@dataclass
class Plain:
    count: int


@dataclass
class Validated:
    count: int

    def __post_init__(self):
        check_int("count", self.count, 1)


class ByHand:
    def __init__(self, count: int):
        self.count = check_int("count", count, 1)


@pytest.mark.parametrize("kind", [Validated, ByHand])
def test_the_type_checker_leaves_arguments_to_constructors_that_validate_them(kind):
    """As jaxtyping's import hook does: what is checked is a function of the constructor's signature."""
    check(kind.__init__)(kind(3), "3")
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, not '3'"):
        kind("3")


def test_the_type_checker_checks_plain_data_classes_and_functions():
    def double(count: int) -> int:
        return 2 * count

    for call in (lambda: check(Plain.__init__)(Plain(3), "3"), lambda: check(double)("3")):
        with pytest.raises(Exception, match="violates type hint"):
            call()
