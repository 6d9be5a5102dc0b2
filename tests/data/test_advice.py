import torch

from data.advice import judge_tokenizers, tokenizer_advice
from data.token_table import TokenTable, Vocabulary


def test_levels_with_under_half_of_their_codes_are_named():
    (text,) = tokenizer_advice([127, 128, 3], [256, 256, 8], 0.3)
    assert "127 of 256 at level 0, 3 of 8 at level 2;" in text
    assert "--codebook_size" in text


def test_collisions_above_30_percent():
    (text,) = tokenizer_advice([256], [256], 0.301)
    assert text.startswith("30% of the items share all codes")
    assert tokenizer_advice([256], [256], 0.3) == []


def test_last_tokenizer_is_judged():
    tokens = torch.zeros(2, 5, 3, dtype=torch.int32)
    tokens[1, 1:] = torch.tensor([[1, 6, 9], [1, 6, 10], [2, 7, 9], [2, 8, 9]])  # levels of 4 codes
    found = judge_tokenizers(TokenTable(tokens, [], Vocabulary((4, 4, 4))))
    assert found == tokenizer_advice([2, 3], [4, 4], 0.5)  # two of four items share both codes
    assert len(found) == 1
