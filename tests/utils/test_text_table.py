import pytest

from utils.text_table import text_table


def test_names_stand_left_and_numbers_right():
    text = text_table(["run", "recall@10", "hours"], [["a", "0.1234", "10.5"], ["longer", "-", ""]])
    assert text.splitlines() == [
        "run     recall@10  hours",
        "a          0.1234   10.5",
        "longer          -",
    ]


def test_a_row_with_another_number_of_cells_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        text_table(["run", "recall@10"], [["a"]])
