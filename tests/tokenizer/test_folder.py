from collections.abc import Callable

from tokenizer.config import TokenizerConfig
from tokenizer.folder import differences, sem_ids_file, training_settings

MakeConfig = Callable[..., TokenizerConfig]


def test_file_names(make_config: MakeConfig):
    config = make_config(codebook_size=[32, 16, 8])
    assert sem_ids_file(config, 9987).name == "encoder_32,16,8,8_9987.sem_ids"
    config = make_config(codebook_size=[32, 16, 8, 64])
    assert sem_ids_file(config, None).name == "encoder_32,16,8,64.sem_ids"
    assert sem_ids_file(config, None).parent == config.tokenizer_folder


def test_settings_that_an_old_training_does_not_know_had_their_defaults(make_config: MakeConfig):
    now = training_settings(make_config())
    before = {name: value for name, value in now.items() if name not in ("mixed_precision", "kind")}
    assert differences(before, now) == ""
    assert differences(before, now | {"mixed_precision": "bf16"}) == "mixed_precision was 'no', now 'bf16'"
