import pytest

from utils.text_table import shorten, text_table


def test_names_stand_left_and_numbers_right():
    text = text_table(["run", "recall@10", "hours"], [["a", "0.1234", "10.5"], ["longer", "-", ""]])
    assert text.splitlines() == [
        "run     recall@10  hours",
        "a          0.1234   10.5",
        "longer          -",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a short\n text", "a short text"),
        ("several words that are too long", "several words that ..."),
        ("字" * 40, "字" * 20 + " ..."),
        ("- " + "字" * 40, "- " + "字" * 18 + " ..."),
    ],
)
def test_a_text_is_cut_between_words_or_in_one(text, found):
    assert shorten(text, 24) == found


def test_a_row_with_another_number_of_cells_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        text_table(["run", "recall@10"], [["a"]])
