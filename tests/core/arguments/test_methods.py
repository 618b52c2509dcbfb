"""Properties, setters and dumps, as scripts use them."""

import inspect
import json
import logging
from datetime import timedelta

import pytest
import torch

from drivetrain import processes
from drivetrain.arguments import ParallelMode, TrainingArguments, owners_of
from drivetrain.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in (*processes.SIZE_VARIABLES, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield
    processes.set_launcher(None)


def test_one_process_on_a_cpu():
    args = TrainingArguments("out", use_cpu=True, per_device_train_batch_size=3, per_device_eval_batch_size=5)
    assert args.device == torch.device("cpu")
    assert (args.n_gpu, args.world_size, args.process_index, args.local_process_index) == (0, 1, 0, 0)
    assert args.local_rank == 0
    assert args.parallel_mode is ParallelMode.NOT_PARALLEL
    assert args.parallel_mode.value == "not_parallel"
    assert (args.train_batch_size, args.eval_batch_size) == (3, 5)
    assert args.should_log
    assert args.should_save
    assert args.place_model_on_device
    assert (args.framework, args.default_optim) == ("pt", "adamw_torch")
    with args.main_process_first(desc="nothing"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none")
def test_one_process_on_a_gpu():
    args = TrainingArguments("out")
    assert (args.device.type, args.n_gpu, args.train_batch_size) == ("cuda", 1, 8)
    args.use_cpu = True
    assert args.device.type == "cpu"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Apple's GPU")
def test_mps_that_is_not_there():
    with pytest.warns(FutureWarning):
        args = TrainingArguments("out", use_mps_device=True)
    if torch.cuda.is_available():
        pytest.skip("CUDA is used before MPS is looked for")
    with pytest.raises(ConfigurationError, match="Apple's GPU"):
        _ = args.device


def test_several_processes_through_a_launcher():
    barriers = []

    class Launcher:
        def start(self, args):
            return processes.Processes(
                torch.device("cpu"),
                rank=5,
                local_rank=1,
                world_size=8,
                wait=lambda: barriers.append("barrier"),
            )

    processes.set_launcher(lambda args: Launcher())
    args = TrainingArguments("out", log_on_each_node=False)
    assert (args.world_size, args.process_index, args.local_process_index) == (8, 5, 1)
    assert args.local_rank == 1
    assert args.parallel_mode.value == "distributed"
    assert not args.should_log
    assert not args.should_save
    with args.main_process_first():
        assert barriers == ["barrier"]
    assert barriers == ["barrier"]


def test_the_log_level_of_this_process():
    args = TrainingArguments("out", log_level="debug", log_level_replica="error", use_cpu=True)
    assert args.get_process_log_level() == logging.DEBUG
    passive = TrainingArguments("out", use_cpu=True)
    assert passive.get_process_log_level() == logging.getLogger("drivetrain").getEffectiveLevel()


def test_the_progress_bar_follows_the_log_level():
    logger = logging.getLogger("drivetrain")
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        assert TrainingArguments("out").disable_tqdm is True
        logger.setLevel(logging.WARNING)
        assert TrainingArguments("out").disable_tqdm is False
        assert TrainingArguments("out", disable_tqdm=True).is_set("disable_tqdm")
        assert not TrainingArguments("out").is_set("disable_tqdm")
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(
    ("values", "steps"), [({}, 0), ({"warmup_ratio": 0.1}, 11), ({"warmup_ratio": 0.1, "warmup_steps": 7}, 7)]
)
def test_warmup_steps(values, steps):
    assert TrainingArguments("out", **values).get_warmup_steps(101) == steps


def test_timeout():
    assert TrainingArguments("out", ddp_timeout=60).ddp_timeout_delta == timedelta(seconds=60)
    assert TrainingArguments("out", ddp_timeout=None).ddp_timeout_delta == timedelta(seconds=1800)


def test_dumps():
    args = TrainingArguments(
        "out", hub_token="secret", fsdp="full_shard", evaluation_strategy="epoch", use_cpu=True
    )
    plain = args.to_dict()
    assert plain["evaluation_strategy"] == "epoch"
    assert type(plain["evaluation_strategy"]) is str
    assert plain["fsdp"] == ["full_shard"]
    assert plain["hub_token"] == "<HUB_TOKEN>"
    assert json.loads(args.to_json_string()) == plain
    flat = args.to_sanitized_dict()
    assert flat["train_batch_size"] == 8
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}
    for text in (str(args), repr(args), args.to_json_string(), str(flat), args.shown("hub_token")):
        assert "secret" not in text
    assert "    evaluation_strategy='epoch'," in str(args)


def test_setters_chain():
    args = (
        TrainingArguments("out")
        .set_training(learning_rate=1e-4, batch_size=32, num_epochs=2)
        .set_evaluate(strategy="steps", steps=100, batch_size=16)
        .set_testing(batch_size=64)
        .set_save(strategy="steps", steps=200, total_limit=2)
        .set_logging(strategy="steps", steps=10, report_to=["tensorboard"], level="info")
        .set_push_to_hub("me/model", strategy="end", token="secret")
        .set_optimizer(name="adafactor", beta1=0.8)
        .set_lr_scheduler(name="cosine", warmup_ratio=0.05)
        .set_dataloader(train_batch_size=4, eval_batch_size=2, num_workers=1, sampler_seed=3)
    )
    args.settle()
    wanted = {
        "do_train": True,
        "learning_rate": 5e-5,  # set_optimizer came later, with its own default,
        "num_train_epochs": 3.0,  # and so did set_lr_scheduler
        "evaluation_strategy": "steps",
        "eval_steps": 100,
        "do_eval": True,
        "do_predict": True,
        "save_steps": 200,
        "save_total_limit": 2,
        "logging_steps": 10,
        "report_to": ["tensorboard"],
        "log_level": "info",
        "push_to_hub": True,
        "hub_model_id": "me/model",
        "hub_strategy": "end",
        "hub_token": "secret",
        "optim": "adafactor",
        "adam_beta1": 0.8,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "dataloader_num_workers": 1,
        "data_seed": 3,
    }
    assert {name: getattr(args, name) for name in wanted} == wanted


def test_setters_come_in_any_order():
    args = TrainingArguments(
        "out", load_best_model_at_end=True, evaluation_strategy="epoch", save_strategy="epoch"
    )
    args.set_evaluate("steps", 50).set_save("steps", 100).settle()
    assert (args.eval_steps, args.save_steps) == (50, 100)


def test_a_setter_refuses_and_sets_nothing():
    args = TrainingArguments("out")
    with pytest.raises(ConfigurationError, match=r"Unknown save_strategy 'stepz'. Did you mean 'steps'\?"):
        args.set_save(strategy="stepz", total_limit=3)
    assert args.save_total_limit is None
    for setter in (args.set_save, args.set_evaluate, args.set_logging):
        with pytest.raises(ConfigurationError, match="needs steps above 0"):
            setter(strategy="steps", steps=0)


def test_owner_of_debug_follows_its_words():
    args = TrainingArguments("out", debug="underflow_overflow tpu_metrics_debug")
    assert owners_of(args, "debug") == ("callback:underflow_overflow", "callback:tpu_metrics")
    assert owners_of(TrainingArguments("out"), "debug") == ()
    assert owners_of(args, "max_grad_norm") == ("core", "strategy")


SETTERS = [name for name in dir(TrainingArguments) if name.startswith("set_")]


@pytest.mark.parametrize("name", SETTERS)
def test_setter_signatures_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != "4.34.0":
        pytest.skip(f"needs transformers 4.34.0, here is {transformers.__version__}")
    theirs = inspect.signature(getattr(transformers.TrainingArguments, name)).parameters
    ours = inspect.signature(getattr(TrainingArguments, name)).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
