import pytest

from training.config import FinetuneConfig, PretrainConfig
from utils.config import expand_epochs, parse_config
from utils.errors import InputError

# paper.md, "Flags of the reference code".
BOTH = {
    **{"rand_seed": 2024, "reproducibility": True, "data_dir": "datasets/", "ckpt_dir": "ckpt/", "log_dir": None},
    **{"tensorboard_log_dir": None, "pretrained_model": "", "train_batch_size": 256, "weight_decay": 0.05},
    **{"steps": None, "max_grad_norm": 1.0, "eval_interval": 1, "topk": [5, 10], "metrics": ["ndcg", "recall"]},
    **{"val_metric": "ndcg@10", "val_ratio": 1.0, "n_codebooks": 3, "codebook_size": 256, "token_prefix": None},
    **{"token_suffix": "sem_ids", "n_user_tokens": 1, "max_item_seq_len": 20, "num_beams": 20, "num_layers": 3},
    **{"num_decoder_layers": 3, "d_model": 128, "d_ff": 512, "num_heads": 4, "d_kv": 64, "dropout_rate": 0.1},
    **{"feed_forward_proj": "relu", "results_dir": None, "sem_id_epochs": None},
}
PRETRAIN = {
    **{"lr": 0.005, "warmup_steps": 10000, "epochs": 200, "epoch_per_stage": [60, 20, 20, 20, 20, 20, 20]},
    **{"tau": 1.0, "load_best_for_next_stage": False, "save_interval": 10, "patience": 50, "val_delay": 100},
    **{"eval_batch_size": 256, "test_num_beams": None},
}
FINETUNE = {
    **{"lr": 0.001, "warmup_steps": 0, "epochs": 100, "save_interval": None, "patience": 10, "val_delay": 0},
    **{"eval_batch_size": 128, "test_num_beams": 50},
}


def parse(config_class: type, *argv: str):
    return parse_config(config_class, list(argv), "test", "")[0]


@pytest.mark.parametrize(("config_class", "own"), [(PretrainConfig, PRETRAIN), (FinetuneConfig, FINETUNE)])
def test_defaults_are_the_reference_codes(config_class: type, own: dict):
    config = config_class()
    assert {name: getattr(config, name) for name in BOTH | own} == BOTH | own
    assert config.problems() == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lr=0", "lr=0.0 must be positive"),
        ("--lr=nan", "lr=nan must be a number"),
        ("--epochs=0", "epochs=0 must be positive"),
        ("--eval_interval=-1", "eval_interval=-1 must be positive"),
        ("--patience=0", "patience=0 must be positive"),
        ("--gradient_accumulation_steps=0", "gradient_accumulation_steps=0 must be positive"),
        ("--tau=-1", "tau=-1.0 must be positive"),
        ("--warmup_steps=-5", "warmup_steps=-5 must not be negative"),
        ("--val_ratio=1.5", "val_ratio=1.5 must be above 0 and at most 1"),
        ("--test_ratio=0", "test_ratio=0.0 must be above 0 and at most 1"),
        ("--schedule_epochs=199", "schedule_epochs=199 must be at least epochs=200"),
        ("--val_users=some", "val_users=some must be all or new"),
        ("--val_users=new", "val_users=new needs users that training does not see: train_user_ratio below 1"),
        ("--influence_sample_ratio=0", "influence_sample_ratio=0.0 must be above 0 and at most 1"),
        ("--dropout_rate=1", "dropout_rate=1.0 must be at least 0 and below 1"),
        ("--mixed_precision=fp8", "mixed_precision=fp8 must be no or bf16"),
        ("--feed_forward_proj=tanh", "feed_forward_proj=tanh must be relu or gated-gelu"),
        ("--network=gpt", "network=gpt must be t5"),
        ("--metrics=[ndcg,hit]", "metrics has 'hit'; there are recall and ndcg"),
        ("--topk=[]", "must not be empty"),
        ("--topk=[5,10,30]", "topk=[5, 10, 30] asks for more items than there are beams (num_beams=20)"),
        ("--test_num_beams=5", "asks for more items than there are beams (test_num_beams=5)"),
        ("--val_metric=ndcg@20", "val_metric=ndcg@20 is not among metrics=['ndcg', 'recall'] at topk=[5, 10]"),
        ("--val_metric=auc", "val_metric: 'auc' is no metric"),
        ("--val_metric=NDCG@10", "val_metric: 'NDCG@10' is no metric"),
        ("--save_interval=null", "save_interval=None must be a whole number"),
        ("--rand_seed=-1", "rand_seed=-1 must be at least 0 and below 2**32"),
        ("--rand_seed=4294967296", "rand_seed=4294967296 must be at least 0 and below 2**32"),
        ("--dataset=..", "dataset=.. must be the name of a folder, not a path"),
        ("--run_name=.", "run_name=. must be the name of a folder, not a path"),
        ("--run_name=../x", "run_name=../x must be the name of a folder, not a path"),
        ("--run_name=", "run_name= must be the name of a folder, not a path"),
        ("--codebook_size=[8,8]", "codebook_size=[8, 8] has 2 entries; n_codebooks=3 takes 3 or 4"),
        ("--sem_id_epochs=9:7", "the range 9:7 runs backwards; write 7:9"),
        ("--sem_id_epochs=[7,7]", "names an epoch twice"),
        ("--token_prefix=[]", "token_prefix is an empty list"),
        ("--epoch_per_stage=[5,0]", "epoch_per_stage=[5, 0] must be a list of stages of 1 or more epochs"),
        ("--curriculum=random", "curriculum=random must be influence or uniform"),
        ("--epoch=3", "unknown flag --epoch (did you mean --epochs?)"),
    ],
)
def test_each_wrong_setting_is_named(flag: str, message: str):
    with pytest.raises(InputError) as caught:
        parse(PretrainConfig, flag)
    assert message in str(caught.value)


def test_all_problems_come_in_one_message():
    with pytest.raises(InputError) as caught:
        parse(PretrainConfig, "--lr=-1", "--tau=0", "--epoch_per_stage=[]", "--val_metric=recall@3", "--num_heads=0")
    assert str(caught.value).count(";") == 4
    for name in ("lr=-1.0", "tau=0.0", "epoch_per_stage=[]", "val_metric=recall@3", "num_heads=0"):
        assert name in str(caught.value)


def test_values_are_read_as_the_reference_code_writes_them():
    config = parse(
        PretrainConfig,
        *("--sem_id_epochs=9976:9979", "--codebook_size=[256,128,64]", "--topk=[1,5]", "--metrics=[recall]"),
        *("--val_metric=recall@5", "--steps=null", "--load_best_for_next_stage"),
    )
    assert expand_epochs(config.sem_id_epochs) == [9976, 9977, 9978, 9979]
    assert (config.codebook_size, config.topk, config.steps) == ([256, 128, 64], [1, 5], None)
    assert config.load_best_for_next_stage is True
    assert parse(FinetuneConfig, "--save_interval=null").save_interval is None
    assert config.metric_names == ["recall@1", "recall@5"]


def test_metric_names_are_every_metric_at_every_cutoff():
    assert FinetuneConfig().metric_names == ["ndcg@5", "recall@5", "ndcg@10", "recall@10"]


def test_pre_training_flags_are_unknown_to_fine_tuning():
    with pytest.raises(InputError, match="unknown flag --tau"):
        parse(FinetuneConfig, "--tau=3")
