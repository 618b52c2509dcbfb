"""Single values: what is taken, in which form it is kept, and the sentence for what is not."""

import json

import numpy as np
import pytest
import torch.distributed

from drivetrain.arguments import TrainingArguments, declared
from drivetrain.arguments.inert import INERT
from drivetrain.errors import ConfigurationError


def problems(**values):
    with pytest.raises(ConfigurationError) as caught:
        TrainingArguments("out", **values)
    return list(caught.value.problems)


WRONG = [
    ({"bf16": "yes"}, "bf16='yes' must be True or False."),
    ({"max_steps": 1.5}, "max_steps=1.5 must be a whole number."),
    ({"max_steps": "10"}, "max_steps='10' must be a whole number, without quotes."),
    ({"seed": True}, "seed=True must be a whole number."),
    ({"learning_rate": "1e-4"}, "learning_rate='1e-4' must be a number, without quotes."),
    ({"learning_rate": float("nan")}, "learning_rate=nan must be a number."),
    ({"learning_rate": -1}, "learning_rate=-1 must be at least 0."),
    ({"warmup_ratio": 1.5}, "warmup_ratio=1.5 must be at least 0 and at most 1."),
    ({"adam_beta1": 1.0}, "adam_beta1=1 must be below 1, or Adam's average never moves."),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1."),
    ({"run_name": 3}, "run_name=3 must be a string."),
    (
        {"save_strategy": "stepz"},
        "Unknown save_strategy 'stepz'. Did you mean 'steps'? Choices: no, steps, epoch.",
    ),
    (
        {"hub_strategy": "every_safe"},
        "Unknown hub_strategy 'every_safe'. Did you mean 'every_save'?"
        " Choices: end, every_save, checkpoint, all_checkpoints.",
    ),
    (
        {"log_level": "warn"},
        "Unknown log_level 'warn'. Did you mean 'warning'?"
        " Choices: detail, debug, info, warning, error, critical, passive.",
    ),
    (
        {"ddp_backend": "glo"},
        "Unknown ddp_backend 'glo'. Did you mean 'gloo'? Choices: nccl, gloo, mpi, ccl, hccl, xccl, ucc.",
    ),
    (
        {"ddp_backend": "undefined"},
        "Unknown ddp_backend 'undefined'. Choices: nccl, gloo, mpi, ccl, hccl, xccl, ucc.",
    ),
    ({"fp16_opt_level": "O4"}, "Unknown fp16_opt_level 'O4'. Choices: O0, O1, O2, O3."),
    ({"fsdp_version": 3}, "Unknown fsdp_version '3'. Choices: 1, 2."),
    (
        {"debug": "underflow"},
        "Unknown debug 'underflow'. Did you mean 'underflow_overflow'? Choices: underflow_overflow,"
        " tpu_metrics_debug.",
    ),
    (
        {"fsdp": "fullshard"},
        "Unknown fsdp 'fullshard'. Did you mean 'full_shard'?"
        " Choices: full_shard, shard_grad_op, no_shard, hybrid_shard, offload, auto_wrap.",
    ),
    ({"fsdp": "full_shard shard_grad_op"}, "fsdp has both full_shard and shard_grad_op: keep one of them."),
    (
        {"fsdp": "offload"},
        "fsdp='offload' needs full_shard or shard_grad_op beside it, as in 'full_shard offload'.",
    ),
    (
        {"sharded_ddp": "offload"},
        "sharded_ddp='offload' needs zero_dp_2 or zero_dp_3 beside it, as in 'zero_dp_2 offload'.",
    ),
    (
        {"sharded_ddp": "simple offload"},
        "sharded_ddp='simple' stands alone: leave out the other words, or leave out simple.",
    ),
    (
        {"sharded_ddp": "zero_dp_2 zero_dp_3"},
        "sharded_ddp has both zero_dp_2 and zero_dp_3: keep one of them.",
    ),
    ({"optim": 3}, "optim=3 must be a name, a class, or 'module:Class'."),
    ({"optim": ""}, "optim='' must be a name."),
    (
        {"report_to": ["all", "wandb"]},
        "report_to=['all', 'wandb'] must be 'all' or 'none' alone, or names of loggers without them.",
    ),
    ({"report_to": 5}, "report_to=5 must be a list of names."),
    ({"label_names": [1]}, "label_names=[1] must be a list of names."),
    (
        {"deepspeed": "nowhere.json"},
        "deepspeed='nowhere.json' is no file here: give the path of a JSON file, or a dict.",
    ),
    ({"deepspeed": 3}, "deepspeed=3 must be the name of a JSON file, or a dict."),
    (
        {"fsdp_config": "nowhere.json"},
        "fsdp_config='nowhere.json' is no file here: give the path of a JSON file, or a dict.",
    ),
    ({"max_shard_size": "big"}, "max_shard_size='big' must be a size such as '5GB' or '500MB'."),
    (
        {"plugins": {"localsgd": 8}},
        "plugins['localsgd'] must be a dict of that plugin's options, not 8.",
    ),
    ({"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs=[1] must be a dict."),
    ({"param_groups": {}}, "param_groups={} must be a list."),
    ({"resume_from_checkpoint": 3}, "resume_from_checkpoint=3 must be a folder's name."),
    # between arguments
    ({"bf16": True, "fp16": True}, "bf16=True and fp16=True contradict each other: keep one of them."),
    (
        {"bf16_full_eval": True, "fp16_full_eval": True},
        "bf16_full_eval=True and fp16_full_eval=True contradict each other: keep one of them.",
    ),
    (
        {"bf16": True, "half_precision_backend": "apex"},
        "bf16=True does not work with half_precision_backend='apex': use 'auto'.",
    ),
    (
        {"logging_steps": 0},
        "logging_strategy='steps' needs logging_steps above 0: set it, or choose logging_strategy='no'"
        " to log nothing.",
    ),
    (
        {"save_steps": 0},
        "save_strategy='steps' needs save_steps above 0: set it, or choose save_strategy='no' to save"
        " nothing.",
    ),
    ({"save_steps": 1.5}, "save_steps=1.5 must be a whole number, or a share of all updates below 1."),
    (
        {"evaluation_strategy": "steps", "logging_strategy": "no", "logging_steps": 0},
        "evaluation_strategy='steps' needs eval_steps above 0:"
        " set it, or choose evaluation_strategy='no' to evaluate nothing.",
    ),
    (
        {"load_best_model_at_end": True},
        "load_best_model_at_end=True needs a checkpoint at every evaluation, but evaluation_strategy='no' and"
        " save_strategy='steps': give both the same.",
    ),
    (
        {"load_best_model_at_end": True, "evaluation_strategy": "steps", "eval_steps": 3, "save_steps": 10},
        "load_best_model_at_end=True needs save_steps to be a multiple of eval_steps, and 10 is none of 3.",
    ),
    (
        {"load_best_model_at_end": True, "evaluation_strategy": "steps", "eval_steps": 0.1, "save_steps": 10},
        "load_best_model_at_end=True cannot compare save_steps=10 with eval_steps=0.1: give both as"
        " numbers of"
        " updates, or both as shares.",
    ),
    (
        {
            "load_best_model_at_end": True,
            "evaluation_strategy": "steps",
            "eval_steps": 0.3,
            "save_steps": 0.1,
        },
        "load_best_model_at_end=True needs save_steps to be a multiple of eval_steps, and 0.1 is none of"
        " 0.3.",
    ),
    (
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        "lr_scheduler_type='reduce_lr_on_plateau' follows a metric, and nothing is evaluated:"
        " set evaluation_strategy to 'steps' or 'epoch'.",
    ),
    (
        {
            "fsdp": "full_shard",
            "fsdp_config": {"min_num_params": 5, "transformer_layer_cls_to_wrap": "Block"},
        },
        "fsdp_config has both min_num_params and transformer_layer_cls_to_wrap, two ways to choose what"
        " is wrapped:"
        " keep one of them.",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_value_is_one_sentence(values, sentence):
    assert problems(**values) == [sentence]


def test_all_problems_are_told_at_once():
    assert len(problems(bf16="yes", save_strategy="x", warmup_steps=-1, fsdp="offload")) == 4


def test_an_output_folder_is_needed():
    with pytest.raises(TypeError, match="output_dir"):
        TrainingArguments()
    with pytest.raises(ConfigurationError, match="output_dir=None must be a folder's name"):
        TrainingArguments(None)


KEPT = [
    ({"save_steps": 100.0}, "save_steps", 100),
    ({"save_steps": 0.1}, "save_steps", 0.1),
    ({"logging_steps": 1}, "logging_steps", 1),
    ({"max_steps": 1e3}, "max_steps", 1000),
    ({"max_steps": np.int64(7)}, "max_steps", 7),
    ({"learning_rate": np.float32(0.5)}, "learning_rate", 0.5),
    ({"learning_rate": 1}, "learning_rate", 1),
    ({"max_grad_norm": None}, "max_grad_norm", None),
    ({"max_grad_norm": float("inf")}, "max_grad_norm", float("inf")),
    ({"eval_delay": None}, "eval_delay", 0),
    ({"report_to": None}, "report_to", ["all"]),
    ({"report_to": "all"}, "report_to", ["all"]),
    ({"report_to": "none"}, "report_to", []),
    ({"report_to": ["none"]}, "report_to", []),
    ({"report_to": "wandb"}, "report_to", ["wandb"]),
    ({"report_to": ["a_strangers"]}, "report_to", ["a_strangers"]),
    ({"fsdp": True}, "fsdp", ["full_shard"]),
    ({"fsdp": False}, "fsdp", []),
    ({"fsdp": "full_shard auto_wrap"}, "fsdp", ["full_shard", "auto_wrap"]),
    ({"fsdp": ["hybrid_shard"]}, "fsdp", ["hybrid_shard"]),
    ({"sharded_ddp": True}, "sharded_ddp", ["simple"]),
    ({"sharded_ddp": "zero_dp_3 offload"}, "sharded_ddp", ["zero_dp_3", "offload"]),
    ({"debug": "underflow_overflow"}, "debug", ["underflow_overflow"]),
    ({"debug": None}, "debug", []),
    ({"optim": "a_strangers"}, "optim", "a_strangers"),
    ({"optim": "package.module:Class"}, "optim", "package.module:Class"),
    ({"lr_scheduler_type": "a_strangers"}, "lr_scheduler_type", "a_strangers"),
    ({"resume_from_checkpoint": True}, "resume_from_checkpoint", True),
    ({"resume_from_checkpoint": False}, "resume_from_checkpoint", None),
    ({"resume_from_checkpoint": "out/checkpoint-1"}, "resume_from_checkpoint", "out/checkpoint-1"),
    ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed", {"zero_optimization": {"stage": 2}}),
    ({"deepspeed": None}, "deepspeed", None),
    ({"torch_compile_mode": "max-autotune"}, "torch_compile", True),
    ({"torch_compile_mode": "max-autotune"}, "torch_compile_backend", "inductor"),
    ({"torch_compile_backend": "eager"}, "torch_compile", True),
    ({"evaluation_strategy": "epoch"}, "do_eval", True),
    ({"evaluation_strategy": "steps"}, "eval_steps", 500),
    ({"evaluation_strategy": "steps", "logging_steps": 0.2}, "eval_steps", 0.2),
    ({"evaluation_strategy": "steps", "eval_steps": 10}, "eval_steps", 10),
    ({"evaluation_strategy": "epoch"}, "eval_steps", None),
    ({"evaluation_strategy": "no"}, "metric_for_best_model", None),
    (
        {"plugins": {"enable": ["profiler"], "localsgd": {"every": 8}}},
        "plugins",
        {"enable": ["profiler"], "localsgd": {"every": 8}},
    ),
    ({"max_shard_size": 1000}, "max_shard_size", "1000"),
]


@pytest.mark.parametrize(("values", "name", "kept"), KEPT, ids=lambda value: str(value)[:60])
def test_value_is_kept_as(values, name, kept):
    found = getattr(TrainingArguments("out", **values), name)
    assert found == kept
    assert isinstance(kept, str) or type(found) is type(kept)


def test_a_backend_that_somebody_has_registered_with_torch(monkeypatch):
    backend = torch.distributed.Backend
    for name in (
        "backend_list",
        "backend_type_map",
        "backend_capability",
        "_plugins",
        "default_device_backend_map",
    ):
        monkeypatch.setattr(backend, name, getattr(backend, name).copy())
    backend.register_backend("smoke", lambda *_: None, devices=["cpu"])
    assert TrainingArguments("out", ddp_backend="Smoke").ddp_backend == "smoke"


def test_an_optimizer_may_be_a_class():
    class Sophia: ...

    args = TrainingArguments("out", optim=Sophia)
    assert args.optim is Sophia
    assert args.to_dict()["optim"] == f"{__name__}:{Sophia.__qualname__}"


@pytest.mark.parametrize(
    ("metric", "greater"), [(None, False), ("loss", False), ("eval_loss", False), ("accuracy", True)]
)
def test_what_is_better_follows_from_the_metric(metric, greater):
    args = TrainingArguments(
        "out",
        load_best_model_at_end=True,
        evaluation_strategy="epoch",
        save_strategy="epoch",
        metric_for_best_model=metric,
    )
    assert args.metric_for_best_model == (metric or "loss")
    assert args.greater_is_better is greater


@pytest.mark.parametrize(("evaluate", "save"), [(5, 10), (0.1, 0.3), (0.2, 0.6), (7, 7)])
def test_save_steps_may_be_a_multiple_of_eval_steps(evaluate, save):
    args = TrainingArguments(
        "out", load_best_model_at_end=True, evaluation_strategy="steps", eval_steps=evaluate, save_steps=save
    )
    assert args.load_best_model_at_end


def test_folders_are_spelled_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = TrainingArguments("~/out", logging_dir="~/logs")
    assert args.output_dir == f"{tmp_path}/out"
    assert args.logging_dir == f"{tmp_path}/logs"
    assert TrainingArguments(tmp_path / "p").output_dir == f"{tmp_path}/p"


def test_names_follow_from_the_folder():
    args = TrainingArguments("out")
    assert args.run_name == "out"
    assert args.logging_dir.startswith("out/runs/")


def test_fsdp_options_from_a_file(tmp_path):
    path = tmp_path / "fsdp.json"
    path.write_text(json.dumps({"fsdp_transformer_layer_cls_to_wrap": "Block", "forward_prefetch": True}))
    args = TrainingArguments("out", fsdp="full_shard", fsdp_config=str(path))
    assert args.fsdp_config["transformer_layer_cls_to_wrap"] == ["Block"]
    assert args.fsdp_config["forward_prefetch"] is True
    path.write_text("{")
    assert "is not valid JSON" in problems(fsdp_config=str(path))[0]
    path.write_text("[]")
    assert "must hold a JSON object" in problems(fsdp_config=str(path))[0]


def test_plugins_may_be_instances():
    plugin = object()
    args = TrainingArguments("out", plugins=(plugin,))
    assert args.plugins == [plugin]
    json.loads(args.to_json_string())


def test_fields_are_mutable_and_settled_again():
    args = TrainingArguments("out")
    args.evaluation_strategy = "steps"
    args.learning_rate = 1.0
    args.settle()
    assert args.do_eval
    assert args.eval_steps == 500
    args.fp16 = args.bf16 = True
    with pytest.raises(ConfigurationError, match="contradict"):
        args.settle()


def test_settling_twice_changes_nothing():
    args = TrainingArguments(
        "out", evaluation_strategy="steps", fsdp="full_shard", debug="underflow_overflow"
    )
    before = dict(args.__dict__)
    args.settle()
    assert args.__dict__ == before


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"evaluation_strategy": "steps", "load_best_model_at_end": True, "fsdp": "full_shard offload"},
        {"hub_token": "secret", "report_to": "none", "optim": "adafactor", "save_steps": 0.25},
        {
            "torch_compile_mode": "default",
            "fsdp_config": {"min_num_params": 3},
            "debug": "underflow_overflow",
        },
    ],
)
def test_to_dict_makes_equal_arguments(values):
    args = TrainingArguments("out", **values)
    again = TrainingArguments(**json.loads(args.to_json_string()))
    args.hub_token = None
    assert again == args
    assert again.to_dict() == args.to_dict()


def test_given_is_what_the_user_set():
    args = TrainingArguments(
        "out", learning_rate=5e-5, evaluation_strategy="steps", report_to="all", bf16=True
    )
    assert args.given() == {"output_dir": "out", "evaluation_strategy": "steps", "bf16": True}
    args.eval_steps = 7
    assert args.given()["eval_steps"] == 7


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        ({}, []),
        (
            {"logging_strategy": "no", "logging_steps": 10},
            ["logging_steps=10 has no effect: logging_strategy is not 'steps'."],
        ),
        ({"max_steps": 5, "num_train_epochs": 1}, ["num_train_epochs=1 has no effect: max_steps decides."]),
        (
            {"warmup_ratio": 0.1, "warmup_steps": 5},
            ["warmup_ratio=0.1 has no effect: warmup_steps decides."],
        ),
        (
            {"save_strategy": "no", "load_best_model_at_end": True},
            ["load_best_model_at_end=True has no effect: nothing is evaluated while training."],
        ),
        ({"evaluation_strategy": "epoch", "eval_delay": 1}, []),
    ],
)
def test_what_is_set_in_vain_is_said(values, sentences):
    assert TrainingArguments("out", **values).inert() == sentences


def test_every_argument_that_may_be_inert_exists():
    assert {name for names, _, _ in INERT for name in names} <= set(declared())
