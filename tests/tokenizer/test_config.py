from pathlib import Path

import pytest

from tokenizer.config import TokenizerConfig
from utils.config import parse_config
from utils.errors import InputError


def parse(*flags: str) -> TokenizerConfig:
    return parse_config(TokenizerConfig, list(flags), "test", "")[0]


def test_defaults_are_the_papers():
    config = parse("--dataset=Video_Games")
    assert config.hidden_sizes == [2048, 1024, 512, 256, 128]
    assert (config.n_codebooks, config.codebook_size, config.beta, config.vq_type) == (3, 256, 0.25, "ema")
    assert (config.learner, config.lr, config.batch_size, config.epochs) == ("adagrad", 0.001, 2048, 10000)
    assert (config.encoder_name, config.sent_emb_dim, config.input_size) == ("sentence-t5-base", 768, 128)
    assert config.kept_epochs == list(range(9950, 10001))
    assert config.embedding_file == Path("datasets/Video_Games/sentence-t5-base.sent_emb")


def test_no_pca_and_fewer_epochs_than_kept():
    config = parse("--dataset=A", "--sent_emb_pca=-1", "--epochs=5", "--sent_emb_model=models/all-MiniLM-L6-v2/")
    assert (config.input_size, config.kept_epochs, config.encoder_name) == (768, [1, 2, 3, 4, 5], "all-MiniLM-L6-v2")


def test_more_tokenizers_than_epochs_are_refused_where_epochs_are_tokenizers():
    asked = ("--dataset=A", "--drift=0.5", "--epochs=10")
    with pytest.raises(InputError, match="--num_tokenizers=25 are more than there are epochs, --epochs=10"):
        parse(*asked)
    assert parse(*asked, "--num_tokenizers=10").kept_epochs == list(range(1, 11))
    assert parse(*asked, "--kind=rqkmeans").num_tokenizers == 25


def test_all_problems_come_in_one_message():
    wrong = {
        "epochs": "0",
        "batch_size": "0",
        "hidden_sizes": "[]",
        "sent_emb_pca": "1000",
        "codebook_size": "[256,1]",
        "lr": "0",
        "dropout": "1.0",
        "beta": "-1",
        "warmup_steps": "3",
        "ckpt_name": "../elsewhere",
        "kind": "vqvae",
    }
    with pytest.raises(InputError) as error:
        parse("--dataset=A", *(f"--{name}={value}" for name, value in wrong.items()))
    message = str(error.value)
    assert [name for name in wrong if f"--{name}=" not in message] == []
    assert "takes 3 or 4" in message
    assert "at least 2" in message


@pytest.mark.parametrize("sizes", ["[32,16,8]", "[32,16,8,64]"])
def test_codebook_sizes_per_level(sizes: str):
    assert parse("--dataset=A", f"--codebook_size={sizes}").codebook_size[:3] == [32, 16, 8]


def test_unknown_flag_names_the_near_one():
    with pytest.raises(InputError, match=r"unknown flag --epochz .*--epochs"):
        parse("--dataset=A", "--epochz=3")
