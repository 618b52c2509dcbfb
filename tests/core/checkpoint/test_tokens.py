"""Tokens that are planted wherever a run could take them from are in nothing that it leaves or prints."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drivetrain import TrainingArguments
from drivetrain.checkpoint import plain
from drivetrain.errors import CheckpointError, ConfigurationError
from drivetrain.secret import guard, is_secret_name, struck

PLANTED = {
    "HF_TOKEN": "hf_FromTheEnvironment0123456789",
    "WANDB_API_KEY": "0123456789abcdef-of-the-environment",
    "DATABASE_PASSWORD": "correct horse battery",
}
ARGUMENT = "a-token-of-no-known-form"
IN_A_STRING = "hf_InTheMiddleOfAString0123456789"
IN_AN_ADDRESS = "user:pa55word@"
EVERY = (*PLANTED.values(), ARGUMENT, IN_A_STRING, IN_AN_ADDRESS)

SCRIPT = f"""
import logging, os, sys
from support.toy import trainer
from drivetrain import TrainerCallback

class Careless(TrainerCallback):
    '''Keeps a token in its state, and tells of it.'''
    def on_step_end(self, args, state, control, **kwargs):
        state.log_history.append({{"step": state.global_step, "note": "as {IN_A_STRING}"}})
        logging.getLogger("drivetrain").warning("uploading with %s", args.hub_token)
    def save_state(self):
        return {{"token": os.environ["HF_TOKEN"], "url": "https://{IN_AN_ADDRESS}host/x", "note": "{ARGUMENT} {IN_A_STRING}"}}
    def load_state(self, state):
        pass

def made(**values):
    return trainer(
        sys.argv[1], max_steps=2, save_steps=1, logging_steps=1, callbacks=[Careless], hub_token="{ARGUMENT}",
        disable_tqdm=False, log_level="info", report_to="tensorboard", **values,
    )

run = made(run_name="with {IN_A_STRING} for " + os.environ["DATABASE_PASSWORD"])
run.train()
run.save_state()
run.create_model_card(dataset="https://{IN_AN_ADDRESS}host/data", dataset_args=os.environ["HF_TOKEN"])
print(run.args, repr(run.args), run.args.to_json_string(), run.args.to_dict(), run.args.to_sanitized_dict())
run = made(run_name=os.environ["WANDB_API_KEY"], learning_rate=0.5, allow_resume_changes=True)
run.train(resume_from_checkpoint=sys.argv[1] + "/checkpoint-1")
made(run_name="x", hub_model_id="{IN_A_STRING}").train(resume_from_checkpoint="{ARGUMENT}/" + os.environ["HF_TOKEN"])
"""


def test_nothing_that_a_run_leaves_has_a_token_in_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, **PLANTED, "PYTHONPATH": _path(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "CheckpointError: resume_from_checkpoint=" in done.stderr, done.stderr
    assert "uploading with <token>" in done.stderr
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    names = {path.name for path in left}
    assert names >= {"README.md", "run.json", "trainer_state.json", "training_args.json"}
    assert any(name.startswith("events.out") for name in names)
    # The last line of a traceback is ours; the lines of the script that it shows are the script's.
    printed = done.stdout + "\n".join(
        line for line in done.stderr.splitlines() if not line.startswith("    ")
    )
    for token in EVERY:
        assert token not in printed
        for path in left:
            assert token.encode() not in path.read_bytes(), path


def test_the_command_line_says_no_token(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'hub_token = "{ARGUMENT}"\nrun_name = "{IN_A_STRING}"\noutput_dir = "{tmp_path}/out"\nseed = "{ARGUMENT}"\n'
    )
    command = [sys.executable, "-W", "ignore", "-m", "drivetrain", "train", str(config)]
    environment = {**os.environ, **PLANTED, "PYTHONPATH": _path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "seed" in done.stdout + done.stderr
    for token in EVERY:
        assert token not in done.stdout + done.stderr


def _path() -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("hub_token", True), ("push_to_hub_token", True), ("api_key", True), ("apiKey", True), ("x-api-key", True),
        ("WANDB_API_KEY", True), ("aws_secret_access_key", True), ("password", True), ("accessToken", True), ("secret", True),
        ("pad_token", False), ("eos_token", False), ("max_tokens", False), ("tokenizer", False), ("monkey", False),
        ("loss_reduction", False), ("key", False), ("token_type", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    "text",
    [
        "see hf_abcdefghijklmnopqrst there", "ghp_abcdefghijklmnopqrst", "sk-abcdefghijklmnopqrst", "AKIA0123456789ABCDEF",
        "https://me:pw@host/x", "postgres://:pw@host", "https://0123456789abcdef@host", "https://host/x?a=1&token=abc",
    ],
)  # fmt: skip
def test_forms_of_secrets(text: str) -> None:
    assert "<token>" in struck(text)


@pytest.mark.parametrize(
    "text", ["ssh://git@github.com/x", "me@host", "a token is needed", "sk_short", "task-" + "a" * 30]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert struck(text) == text


def test_arguments_show_no_secret_of_a_plugin() -> None:
    options = {"mine": {"api_key": "the-key-of-mine", "nested": [{"password": "open sesame"}], "rate": 3}}
    args = TrainingArguments("out", plugins=options, run_name="for the-key-of-mine")
    for shown in (
        str(args),
        repr(args),
        args.to_json_string(),
        str(args.to_dict()),
        json.dumps(plain(args.to_dict())),
    ):
        assert "the-key-of-mine" not in shown
        assert "open sesame" not in shown
    assert args.plugins == options  # what the plugin is given is what it was
    assert args.to_dict()["plugins"]["mine"]["rate"] == 3


def test_errors_and_log_lines_are_struck(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "k3y-of-the-environment")
    assert "k3y" not in str(CheckpointError("it is k3y-of-the-environment"))
    problems: Any = ["one k3y-of-the-environment", "two"]
    error = ConfigurationError(problems)
    assert "k3y" not in str(error) + str(error.problems)
    logger = logging.getLogger("drivetrain")
    guard(logger)
    logger.warning("it is %s", "k3y-of-the-environment")
    assert "it is <token>" in caplog.text
    monkeypatch.delenv("SOME_API_KEY")
    assert "k3y" in str(CheckpointError("it is k3y-of-the-environment"))
