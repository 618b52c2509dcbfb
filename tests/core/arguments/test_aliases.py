"""Older and later spellings: a warning and the new argument, or a sentence."""

import warnings

import pytest

from drivetrain.arguments import ORDER, TrainingArguments
from drivetrain.arguments.aliases import ALIASES
from drivetrain.errors import ConfigurationError

FOLDED = [
    ({"per_gpu_train_batch_size": 4}, "per_device_train_batch_size", 4, "use per_device_train_batch_size"),
    ({"per_gpu_eval_batch_size": 4}, "per_device_eval_batch_size", 4, "use per_device_eval_batch_size"),
    ({"no_cuda": True}, "use_cpu", True, "use use_cpu"),
    ({"adafactor": True}, "optim", "adafactor", "use optim='adafactor'"),
    ({"fp16_backend": "cuda_amp"}, "half_precision_backend", "cuda_amp", "use half_precision_backend"),
    ({"push_to_hub_token": "secret"}, "hub_token", "secret", "use hub_token"),
    ({"torchdynamo": "eager"}, "torch_compile_backend", "eager", "use torch_compile_backend"),
    ({"torchdynamo": "eager"}, "torch_compile", True, "use torch_compile_backend"),
    ({"xpu_backend": "ccl"}, "ddp_backend", "ccl", "use ddp_backend"),
    ({"tpu_metrics_debug": True}, "debug", ["tpu_metrics_debug"], "use debug='tpu_metrics_debug'"),
    ({"push_to_hub_model_id": "m"}, "hub_model_id", "m", "use hub_model_id='m'"),
    (
        {"push_to_hub_model_id": "m", "push_to_hub_organization": "o"},
        "hub_model_id",
        "o/m",
        "use hub_model_id='o/m'",
    ),
    ({"push_to_hub_organization": "o"}, "hub_model_id", "o/out", "use hub_model_id='o/out'"),
    ({"use_mps_device": True}, "use_mps_device", True, "leave it out"),
    ({"use_legacy_prediction_loop": True}, "use_legacy_prediction_loop", True, "Trainer.evaluation_loop"),
]


@pytest.mark.parametrize(("values", "name", "kept", "cure"), FOLDED, ids=lambda value: str(value)[:50])
def test_an_older_spelling_warns_and_works(values, name, kept, cure):
    with pytest.warns(FutureWarning, match=cure) as caught:
        args = TrainingArguments("out", **values)
    assert getattr(args, name) == kept
    assert len(caught) == 1
    assert caught[0].filename == __file__
    if name not in values:
        assert not set(values) & set(args.given())
        assert args.is_set(name) or name == "torch_compile"
    with warnings.catch_warnings():  # settled again, and read back from a dict, it is old news
        warnings.simplefilter("error")
        args.settle()
        TrainingArguments(**args.to_dict())


def test_older_fsdp_options_are_merged():
    with pytest.warns(FutureWarning, match="min_num_params"):
        args = TrainingArguments("out", fsdp="full_shard", fsdp_min_num_params=10)
    assert args.fsdp_config["min_num_params"] == 10
    with pytest.warns(FutureWarning, match="transformer_layer_cls_to_wrap"):
        args = TrainingArguments("out", fsdp="full_shard", fsdp_transformer_layer_cls_to_wrap="Block")
    assert args.fsdp_config["transformer_layer_cls_to_wrap"] == ["Block"]


def test_merging_leaves_the_users_dict_alone():
    config = {"min_num_params": 1}
    with pytest.warns(FutureWarning):
        TrainingArguments("out", fsdp="full_shard", fsdp_config=config, fsdp_min_num_params=10)
    assert config == {"min_num_params": 1}


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        ({"mp_parameters": "x"}, "use fsdp or deepspeed"),
        ({"dispatch_batches": True}, "every process reads its own rows"),
    ],
)
def test_what_is_gone_says_what_to_do(values, cure):
    with pytest.raises(ConfigurationError, match=cure) as caught:
        TrainingArguments("out", **values)
    assert len(caught.value.problems) == 1


def test_dispatch_batches_false_is_how_it_is():
    assert TrainingArguments("out", dispatch_batches=False).dispatch_batches is False


def test_every_spelling_is_tried_here():
    tried = {name for row in FOLDED for name in row[0]}
    tried |= {"mp_parameters", "dispatch_batches", "eval_strategy"}
    tried |= {"fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"}
    assert tried == set(ALIASES)
    assert set(ALIASES) - set(ORDER) == {"eval_strategy", "xpu_backend"}


@pytest.mark.parametrize(
    "values",
    [
        {"per_gpu_train_batch_size": 4, "per_device_train_batch_size": 16},
        {"eval_strategy": "steps", "evaluation_strategy": "epoch"},
        {"adafactor": True, "optim": "sgd"},
        {"push_to_hub_token": "secret one", "hub_token": "secret two"},
    ],
)
def test_two_spellings_that_contradict_are_an_error(values):
    older, newer = values
    if older == "adafactor":
        newer = "optim"
    with pytest.raises(ConfigurationError, match=f"{older} and {newer} contradict each other") as caught:
        TrainingArguments("out", **values)
    assert "secret" not in str(caught.value)


def test_a_wrong_value_is_told_for_the_argument_it_became():
    with (
        pytest.warns(FutureWarning),
        pytest.raises(ConfigurationError, match="Unknown half_precision_backend 'amp'"),
    ):
        TrainingArguments("out", fp16_backend="amp")


def test_the_later_spelling_of_the_evaluation_strategy():
    args = TrainingArguments("out", eval_strategy="epoch")
    assert args.evaluation_strategy == args.eval_strategy == "epoch"
    args.evaluation_strategy = "no"
    assert args.eval_strategy == "no"
    args.eval_strategy = "steps"
    assert args.evaluation_strategy == "steps"
    args.settle()
    assert args.eval_steps == 500
    assert TrainingArguments(**args.to_dict()) == args
