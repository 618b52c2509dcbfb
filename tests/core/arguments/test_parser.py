"""The dataclass as transformers' own argument parser reads it; whichever version is installed."""

import dataclasses

import pytest

from drivetrain.arguments import TrainingArguments

transformers = pytest.importorskip("transformers")


@dataclasses.dataclass
class WithExtra(TrainingArguments):
    extra: int = 0


def parse(*words: str, cls=TrainingArguments):
    parser = transformers.HfArgumentParser((cls,))
    (args,) = parser.parse_args_into_dataclasses(
        args=["--output_dir", "out", *words], look_for_args_file=False
    )
    return args


def test_nothing_but_the_folder_is_the_constructor():
    assert parse().given() == TrainingArguments("out").given() == {"output_dir": "out"}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--bf16", "bf16", True),
        ("--bf16 False", "bf16", False),
        ("--no_dataloader_pin_memory", "dataloader_pin_memory", False),
        ("--learning_rate 1e-4", "learning_rate", 1e-4),
        ("--save_steps 0.1", "save_steps", 0.1),
        ("--save_steps 100", "save_steps", 100),
        ("--evaluation_strategy epoch", "evaluation_strategy", "epoch"),
        ("--eval_strategy epoch", "evaluation_strategy", "epoch"),
        ("--optim a_strangers", "optim", "a_strangers"),
        ("--optim mine.optim:Sophia", "optim", "mine.optim:Sophia"),
        ("--lr_scheduler_type cosine", "lr_scheduler_type", "cosine"),
        ("--report_to tensorboard wandb", "report_to", ["tensorboard", "wandb"]),
        ("--report_to none", "report_to", []),
        ("--label_names start end", "label_names", ["start", "end"]),
        ("--debug underflow_overflow", "debug", ["underflow_overflow"]),
        ("--max_grad_norm 0.5", "max_grad_norm", 0.5),
        ("--tf32 True", "tf32", True),
        ("--ddp_find_unused_parameters False", "ddp_find_unused_parameters", False),
        ("--resume_from_checkpoint true", "resume_from_checkpoint", True),
        ("--hub_strategy end", "hub_strategy", "end"),
        ("--loss_reduction micro_batches", "loss_reduction", "micro_batches"),
        ("--fsdp_version 1", "fsdp_version", 1),
    ],
)
def test_words(words, name, value):
    assert getattr(parse(*words.split()), name) == value


def test_words_with_spaces_and_json():
    args = parse(
        "--fsdp",
        "full_shard auto_wrap",
        "--plugins",
        '{"localsgd": {"every": 8}}',
        "--lr_scheduler_kwargs",
        '{"num_cycles": 2}',
    )
    assert args.fsdp == ["full_shard", "auto_wrap"]
    assert args.plugins == {"localsgd": {"every": 8}}
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_file_for_deepspeed(tmp_path):
    (tmp_path / "ds.json").write_text("{}")
    assert parse("--deepspeed", str(tmp_path / "ds.json")).deepspeed == str(tmp_path / "ds.json")


def test_a_subclass_is_read_too():
    assert parse("--extra", "3", cls=WithExtra).extra == 3


def test_unknown_choice_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--save_strategy", "stepz")
    assert "stepz" in capsys.readouterr().err


def test_every_argument_has_its_help():
    text = " ".join(transformers.HfArgumentParser((TrainingArguments,)).format_help().split())
    assert "Micro-batches whose gradients are summed before one update." in text


def test_their_enums_are_taken():
    from transformers.trainer_utils import IntervalStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    args = TrainingArguments(
        "out",
        evaluation_strategy=IntervalStrategy.EPOCH,
        lr_scheduler_type=SchedulerType.COSINE,
        optim=OptimizerNames.ADAFACTOR,
    )
    assert (args.evaluation_strategy, args.lr_scheduler_type, args.optim) == ("epoch", "cosine", "adafactor")
    assert type(args.evaluation_strategy).__module__ == "drivetrain.arguments.enums"
