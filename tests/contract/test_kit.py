"""The kit itself: what an author sees of it under pytest, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from drivetrain.errors import ConfigurationError
from drivetrain.testing import StrategyContract, comparing
from drivetrain.testing.launching import Runs, living
from drivetrain.testing.meaning import of_factor
from drivetrain.testing.plan import Plan
from drivetrain.testing.scenario import Scenario
from drivetrain.testing.spec import Spec

THREE_LINES = """
from drivetrain.testing import StrategyContract

class TestMine(StrategyContract):
    strategy = "ddp"
    leaves_out = {"test_events": "nobody listens"}
"""


def author(folder: Path, *words: str) -> list[str]:
    """The command of an author who runs pytest in a folder with the three lines."""
    (folder / "test_mine.py").write_text(THREE_LINES)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *words, str(folder)]


@pytest.mark.slow
def test_three_lines_run_what_is_chosen_and_say_what_is_skipped(tmp_path: Path) -> None:
    done = subprocess.run(
        author(
            tmp_path, "-k", "wrong_option or events or shards or refuses", f"--basetemp={tmp_path / 'runs'}"
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed, 5 skipped" in done.stdout
    assert "nobody listens" in done.stdout
    assert "shards = () says that nothing is spread" in done.stdout
    assert "it does not refuse clipping" in done.stdout
    runs = [path.name for path in (tmp_path / "runs").rglob("*@2")]
    assert runs == ["misspelt@2"], "only what the chosen tests need is run"


@pytest.mark.soak
def test_breaking_off_ends_every_process(tmp_path: Path) -> None:
    command = author(tmp_path, "-k", "equals_single", f"--basetemp={tmp_path / 'runs'}")

    def heard() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's job in the background ignores it

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=heard)
    try:
        until = time.monotonic() + 200
        while not (begun := list(tmp_path.rglob("launch-*-of-2-rank-1.lock"))) and time.monotonic() < until:
            time.sleep(0.05)
        assert begun, "the processes did not come"
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 2  # pytest's word for an interruption
        plans = list(tmp_path.rglob("launch-*.json"))
        assert plans
        assert {plan.name: living(plan) for plan in plans if living(plan)} == {}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_without_pytest_a_sentence_says_what_to_install() -> None:
    program = "import sys; sys.modules['pytest'] = None\nfrom drivetrain.testing import StrategyContract"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: drivetrain.testing needs pytest, which is not installed. Run: pip install "
        "'drivetrain[testing]'"
    )


def test_importing_the_kit_imports_nothing_heavy() -> None:
    program = (
        "import drivetrain.testing, sys; print([m for m in ('torch', 'pytest', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == "[]"


def test_its_page_names_every_attribute_and_every_test() -> None:
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    attributes = [entry.name for entry in dataclasses.fields(Spec) if entry.name != "name"]
    assert list(StrategyContract.__annotations__) == attributes
    tests = [name for name in dir(StrategyContract) if name.startswith("test_")]
    assert len(tests) > 20
    assert [name for name in (*attributes, *tests) if f"`{name}`" not in text] == []


def test_no_test_of_the_contract_can_be_replaced() -> None:
    with pytest.raises(TypeError, match=r"replaces test_resumes of the contract: name it in leaves_out"):

        class Emptied(StrategyContract):
            strategy = "ddp"

            def test_resumes(self) -> None:  # type: ignore[override]
                pass


def test_what_the_author_says_is_checked_all_at_once() -> None:
    class Wrong(StrategyContract):
        processes = (2, 5)
        shards = ("weights",)
        refuses = {"bf61": "no", "clipping": ""}
        equal_with = {"option": {}}
        leaves_out = {"test_resume": "no"}
        options = {"model": torch.nn.Identity}
        device = "gpu"

    with pytest.raises(ConfigurationError) as caught:
        Spec.of(Wrong)
    said = caught.value.problems
    assert len(said) == 10
    for words in (
        'strategy = "NAME" must name',
        "processes = (2, 5) must be numbers that divide 12",
        "shards knows no 'weights'",
        "refuses knows no 'bf61'. Did you mean 'bf16'?",
        "refuses['clipping'] must be a sentence",
        "equal_with knows no 'option'. Did you mean 'options'?",
        "equal_with needs differs",
        "leaves_out knows no 'test_resume'. Did you mean 'test_resumes'?",
        "options must hold what JSON can",
        "device = 'gpu' must be",
    ):
        assert any(words in problem for problem in said), words


def test_single_is_given_the_settings_and_not_the_arguments(tmp_path: Path) -> None:
    class Local(StrategyContract):
        strategy = "mine"
        options = {"every": 4}
        arguments = {"ddp_timeout": 90}
        settings = {"optim": "sgd"}
        differs = "it is local"
        equal_with = {"options": {"every": 1}, "settings": {"max_grad_norm": 0.0}}

    plan = Plan(Spec.of(Local), tmp_path, tmp_path / "single")
    own, equal = plan.own("whole"), plan.equal("whole")
    single, other = plan.reference("whole", equal=False), plan.reference("whole")
    assert own.arguments["plugins"] == {"mine": {"every": 4}}
    assert equal.arguments["plugins"] == {"mine": {"every": 1}}
    assert (own.arguments["max_grad_norm"], equal.arguments["max_grad_norm"]) == (1.0, 0.0)
    assert (single.arguments["max_grad_norm"], other.arguments["max_grad_norm"]) == (1.0, 0.0)
    assert {run.arguments["optim"] for run in (own, equal, single, other)} == {"sgd"}
    assert (own.arguments["ddp_timeout"], single.arguments["ddp_timeout"]) == (90, 60)
    assert {run.arguments.get("strategy") for run in (single, other)} == {None}
    assert len({run.folder for run in (own, equal, single, other)}) == 4
    rows = [run.arguments["per_device_train_batch_size"] * run.world for run in (own, equal, single)]
    assert rows == [12, 12, 12]


def test_where_no_process_begins_no_more_are_started(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.py").write_text("raise ImportError('it is broken')")
    runs = Runs(tmp_path, {"PYTHONPATH": str(tmp_path)})
    plan = Plan(Spec("TestMine", "mine"), tmp_path, tmp_path)
    first, second = plan.reference("plain"), plan.reference("whole")
    runs.run([first, second])
    assert runs.outcomes[first.folder].trouble == (
        "rank 0 ended before it began without a word; ImportError: it is broken"
    )
    assert runs.outcomes[second.folder].trouble.startswith("It was not run, since no process has begun: ")
    assert len(list(tmp_path.glob("launch-*.json"))) == 1


def test_what_is_no_number_is_a_difference() -> None:
    assert comparing.numbers("losses", "loss {}", [float("nan")], [1.0], 1.0)
    assert comparing.tensors("weights", {"w": torch.tensor([float("nan")])}, {"w": torch.ones(1)}, 1.0)
    assert comparing.tensors("weights", {}, {"w": torch.ones(1)}, 1.0)[0].text == "weights: w missing"
    assert comparing.numbers("losses", "loss {}", [1.0], [1.0, 2.0], 1.0)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (4.0, "summed over the processes"),
        (0.25, "twice, or only one process's"),
        (3.0, "does not divide the loss by the accumulation"),
        (1 / 3, "divided by the accumulation twice"),
        (2.0, "squares of a norm are summed"),
        (0.5, "norm is that of one process's part"),
        (1.0, ""),
        (1.3, ""),
        (0.0, ""),
        (float("nan"), ""),
    ],
)
def test_known_factors_have_causes(ratio: float, words: str) -> None:
    said = of_factor(ratio, Scenario("", "", "", 4, {"gradient_accumulation_steps": 3}, 1))
    assert words in said
    assert bool(said) == bool(words)
