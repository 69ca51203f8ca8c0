"""The table's name, and its publication's."""

import pytest

from brain.postgres.table import Table

RUNS = Table("public", "runs")


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("runs", RUNS),
        ("public.runs", RUNS),
        ("My app.Runs", Table("My app", "Runs")),
        ('a".b;', Table('a"', "b;")),
    ],
)
def test_a_name_is_parsed_and_printed(text: str, table: Table) -> None:
    assert Table.parse(text) == table
    assert Table.parse(str(table)) == table


@pytest.mark.parametrize("text", ["", ".", ".runs", "public.", "db.public.runs"])
def test_other_texts_are_no_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"schema\.name"):
        Table.parse(text)


def test_the_publication_name_is_cut_at_63_bytes() -> None:
    assert RUNS.publication == "brain_public_runs"
    long = Table("ü" * 30, "runs").publication
    assert len(long.encode()) <= 63
    assert long == "brain_" + "ü" * 28
