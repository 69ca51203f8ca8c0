"""What a client's value is compared as, type by type."""

import pytest

from brain.postgres.canonical import Columns, canonical, printed
from brain.postgres.table import Column

U = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


def column(base: str, scale: int | None = None) -> Column:
    return Column(
        "id", f'"pg_catalog"."{base}"', generated=False, default=False, base=base, scale=scale
    )


@pytest.mark.parametrize(
    ("base", "scale", "given", "expected"),
    [
        ("uuid", None, U.upper(), U),
        ("uuid", None, "{" + U + "}", U),
        ("uuid", None, U.replace("-", ""), U),
        ("uuid", None, "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", U),
        ("uuid", None, U[:-1], None),
        ("uuid", None, "{" + U, None),
        ("uuid", None, f" {U}", None),
        ("uuid", None, "a0-eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None),
        ("uuid", None, "\u212a" * 32, None),
        ("int8", None, "007", "7"),
        ("int8", None, "+7", "7"),
        ("int8", None, "-007", "-7"),
        ("int8", None, " 7\n", "7"),
        ("int8", None, "-0", "0"),
        ("int8", None, "000", "0"),
        ("int8", None, "9223372036854775807", "9223372036854775807"),
        ("int8", None, "9223372036854775808", None),
        ("int8", None, "-9223372036854775808", "-9223372036854775808"),
        ("int8", None, "0" * 900 + "7", "7"),
        ("int8", None, "7.0", None),
        ("int8", None, "\u0667", None),
        ("int8", None, "", None),
        ("int4", None, "2147483648", None),
        ("int2", None, "32768", None),
        ("int2", None, "-32768", "-32768"),
        ("numeric", None, "007.50", "7.5"),
        ("numeric", None, "7.", "7"),
        ("numeric", None, ".5", "0.5"),
        ("numeric", None, "-0.0", "0"),
        ("numeric", None, "9" * 1000, "9" * 1000),
        ("numeric", 2, "7", "7.00"),
        ("numeric", 2, "-7.5", "-7.50"),
        ("numeric", 2, "7.001", None),
        ("numeric", 0, "7.0", "7"),
        ("numeric", None, "x", None),
        ("bpchar", None, "x  ", "x"),
        ("bpchar", None, " x\t", " x\t"),
        ("text", None, "007 ", "007 "),
        ("", None, "X", "X"),
    ],
)
def test_a_value_is_compared_as_its_column_prints_it(
    base: str, scale: int | None, given: str, expected: str | None
) -> None:
    assert canonical(column(base, scale), given) == expected


def test_a_value_that_the_column_cannot_hold_matches_nothing_and_not_everything() -> None:
    assert printed(column("int8"), ["x", "007"]) == {"x", "7"}


def test_without_a_description_there_is_no_form() -> None:
    assert Columns(lambda: None)("run_id", ["x"]) is None
    form = Columns(lambda: {"id": column("int8")})
    assert form("run_id", ["07"]) == frozenset({"7"})
    assert form("agent", ["07"]) == frozenset({"07"}), "a column that the table lacks"


def test_a_numeric_without_a_scale_matches_as_it_was_written_too() -> None:
    """Clients filter by the id that they received: 1.50."""
    assert printed(column("numeric"), ["1.50"]) == {"1.50", "1.5"}
    assert printed(column("numeric", 2), ["1.5"]) == {"1.50"}
