"""An argument that is set is used, or said to do nothing, or refused in one sentence."""

from __future__ import annotations

import logging

import pytest
import torch
from support.toy import Toy, accuracy, rows, trainer

from drivetrain.errors import CheckpointError, ConfigurationError


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows(16))


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"log_level_replica": "info"}, "log_level_replica='info' has no effect: there is one process."),
        ({"log_on_each_node": False}, "log_on_each_node=False has no effect: there is one node."),
        ({"save_on_each_node": True}, "save_on_each_node=True has no effect: there is one node."),
        (
            {"greater_is_better": True, "evaluation_strategy": "epoch"},
            "greater_is_better=True has no effect: metric_for_best_model names no metric.",
        ),
        ({"ignore_data_skip": True}, "ignore_data_skip=True has no effect: no checkpoint is resumed."),
        (
            {"data": Stream(), "data_seed": 3, "eval_dataset": rows(4)},
            "data_seed=3 has no effect: the rows of an iterable data set come as they are.",
        ),
        (
            {"label_names": ["targets"], "evaluation_strategy": "epoch"},
            "label_names has 'targets', which the batches have not, so the evaluation gives no loss."
            " They have: x, labels.",
        ),
    ],
)
def test_what_does_nothing_is_said(tmp_path, caplog, settings, sentence):
    settings = {"max_steps": 2, "data": rows(16), "save_strategy": "no"} | settings
    trainer(tmp_path, **settings).train()
    assert sentence in said(caplog)


def test_log_steps_that_pace_the_evaluations_are_not_called_idle(tmp_path, caplog):
    trained = trainer(
        tmp_path,
        data=rows(32),
        max_steps=4,
        logging_strategy="no",
        logging_steps=2,
        evaluation_strategy="steps",
    )
    trained.train()
    assert [row["step"] for row in trained.state.log_history if "eval_loss" in row] == [2, 4]
    assert not any("logging_steps" in sentence for sentence in said(caplog))


def test_the_first_update_is_logged_under_no_logging_too(tmp_path, caplog):
    trained = trainer(
        tmp_path,
        data=rows(32),
        max_steps=3,
        logging_strategy="no",
        logging_first_step=True,
        logging_nan_inf_filter=False,
    )
    trained.train()
    assert [row["step"] for row in trained.state.log_history if "loss" in row] == [1]
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_shard_size": "0KB"}, "max_shard_size='0KB' must be a size such as '5GB' or '500MB'."),
        ({"max_shard_size": 0}, "max_shard_size=0 must be a size such as '5GB' or '500MB'."),
        (
            {"plugins": {"enable": "gradient_norms"}},
            "plugins['enable'] must be a list of plugins' names, not 'gradient_norms'.",
        ),
        (
            {"plugins": {"enable": ["ddp"]}},
            "plugins['enable']: The strategy 'ddp' is not enabled by name: strategy = \"ddp\" chooses it.",
        ),
        (
            {"param_groups": [{"match": "first.*", "lr": "fast"}]},
            "param_groups[0]: 'lr' must be a number of at least 0, and is 'fast'.",
        ),
        (
            {"past_index": 0},
            "past_index=0 finds no output of that number in the model's dict: return a tuple, or leave"
            " past_index out.",
        ),
        (
            {
                "include_inputs_for_metrics": True,
                "compute_metrics": accuracy,
                "evaluation_strategy": "steps",
                "eval_steps": 1,
            },
            "include_inputs_for_metrics=True finds no 'input_ids' in the batches: set main_input_name on the"
            " model, or leave include_inputs_for_metrics out.",
        ),
    ],
)
def test_wrong_is_one_sentence(tmp_path, settings, sentence):
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, data=rows(16), max_steps=2, save_strategy="no", **settings).train()
    assert str(caught.value) == sentence


def test_half_evaluation_takes_float_inputs(tmp_path):
    model = Toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    full = trainer(tmp_path, model=model).evaluate()["eval_loss"]
    half = trainer(tmp_path, model=model, bf16_full_eval=True).evaluate()["eval_loss"]
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model._forward_pre_hooks


SHORT = {"data": rows(32), "max_steps": 4, "save_steps": 2}


def test_another_runs_checkpoint_is_replaced_with_one_warning(tmp_path, caplog):
    trainer(tmp_path, **SHORT).train()
    assert said(caplog) == []
    trainer(tmp_path, **SHORT).train()
    assert [sentence.split(" is of")[0] for sentence in said(caplog)] == [str(tmp_path / "checkpoint-2")]
    caplog.clear()
    trainer(tmp_path, overwrite_output_dir=True, **SHORT).train()
    trainer(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"), **SHORT).train()
    assert said(caplog) == []


def test_a_resume_says_what_has_changed(tmp_path, caplog):
    trainer(tmp_path, **SHORT).train()
    folder = str(tmp_path / "checkpoint-2")
    trainer(tmp_path, resume_from_checkpoint=folder, learning_rate=0.5, seed=1, **SHORT).train()
    assert said(caplog) == [
        f"Changed since {folder} was written: learning_rate was 0.01 and is 0.5 (without effect: the optimizer's and the "
        "scheduler's state have theirs); seed was 42 and is 1 (without effect: the random states are those of the "
        "checkpoint)."
    ]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("checkpoint-22", "is no folder. Did you mean '{}/checkpoint-2'?"),
        ("", "is no checkpoint but a folder of them: name one, such as '{}/checkpoint-4'."),
    ],
)
def test_a_checkpoint_that_is_none(tmp_path, wanted, sentence):
    trainer(tmp_path, **SHORT).train()
    with pytest.raises(CheckpointError) as caught:
        trainer(tmp_path, **SHORT).train(resume_from_checkpoint=str(tmp_path / wanted).rstrip("/"))
    assert str(caught.value).endswith(sentence.format(tmp_path))


def test_another_optimizers_checkpoint_is_refused(tmp_path):
    trainer(tmp_path, **SHORT).train()
    with pytest.raises(CheckpointError, match="written by another optimizer than SGD: it has no 'dampening'"):
        trainer(tmp_path, optim="sgd", resume_from_checkpoint=True, **(SHORT | {"max_steps": 6})).train()
