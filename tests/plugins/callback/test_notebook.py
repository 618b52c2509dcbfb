"""The display in a notebook: a real one is executed by a real kernel (`nox -s notebook`)."""

from __future__ import annotations

import re
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel: nox -s notebook")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: nox -s notebook")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel: nox -s notebook")

DEFINE = """
import time, torch
from drivetrain import Trainer, TrainerCallback, TrainingArguments

class Net(torch.nn.Module):
    fails = False
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
    def forward(self, x, labels=None):
        time.sleep(0.1)
        if self.fails:
            raise RuntimeError("the <model> broke")
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

class Speaks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            print("a script speaks")

rows = [{"x": torch.ones(4) * (i % 3), "labels": i % 2} for i in range(96)]
args = TrainingArguments(
    "OUT", num_train_epochs=1, logging_steps=3, evaluation_strategy="steps", eval_steps=6, save_strategy="no",
    report_to="none", use_cpu=True,
)
trainer = Trainer(Net(), args, train_dataset=rows, eval_dataset=rows, callbacks=[Speaks],
                  compute_metrics=lambda given: {"<f1>": 0.5})
"""
CELLS = (
    "trainer.train();",
    "trainer.evaluate();",
    "trainer.predict(rows);",
    "Net.fails = True\ntrainer.train()",
)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The cells' outputs, and every message that changed one of them."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [nbformat.v4.new_code_cell(code) for code in (DEFINE.replace("OUT", str(folder / "out")), *CELLS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    updates: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc,name-defined]
        def process_message(self, message: Any, *more: Any) -> Any:
            if message["msg_type"] in ("display_data", "update_display_data"):
                updates.append(message["content"]["data"]["text/html"])
            return super().process_message(message, *more)

    client = Client(notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return [cell.outputs for cell in notebook.cells[1:]], updates


def shown(outputs: Any) -> list[str]:
    """The displays of a cell."""
    return [output["data"]["text/html"] for output in outputs if output.output_type == "display_data"]


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).replace("&ensp;", " ").split())


def test_a_run_has_one_display_with_a_table(executed: Any) -> None:
    outputs = executed[0][0]
    (html,) = shown(outputs)
    text = words(html)
    assert re.match(
        r"Training 12/12 100% epoch 1\.00/1 0:\d\d in all loss \d\.\d{4} [▁▂▃▄▅▆▇█]+ lr ", text
    ), text
    assert re.search(
        r"grad norm \d\.\d{4} [\d,.]+ rows/s host [\d.]+ [MG]iB eval_loss \d\.\d{4} \(best", text
    )
    assert "step loss eval_loss eval_&lt;f1&gt; train_loss" in text
    table = re.findall(r"<tr>(.*?)</tr>", html)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table]
    assert [row[0] for row in cells] == ["step", "6", "12"], (
        "an evaluation takes the place of losses before it"
    )
    assert all(re.fullmatch(r"\d\.\d{4}", shown) for row in cells[1:] for shown in row[1:4])
    # Where there is no page, as in a console, there is text.
    (plain,) = (output["data"]["text/plain"] for output in outputs if output.output_type == "display_data")
    assert re.fullmatch(r"Training 12/12 .*in all\nloss .*\n.* rows/s .*\neval_loss .*\n", plain + "\n")
    # What the cell printed is where it was printed.
    said = [output for output in outputs if output.output_type == "stream"]
    assert {output.name for output in said} == {"stdout"}
    first, *rest = "".join(output.text for output in said).splitlines()
    assert first == "a script speaks"
    assert [line.split(":")[0] for line in rest] == ["Time", "Spent on", "Plugins"]


def test_it_moved_while_it_ran(executed: Any) -> None:
    texts = [words(update) for update in executed[1]]
    assert any(re.search(r"Training [1-9]/12 .*left", text) for text in texts)
    assert any(re.search(r"Training .*left Evaluation \d+/12 \d+% ", text) for text in texts)
    assert any(re.search(r" step loss 3 \d\.\d{4}$", text) for text in texts)
    assert any(re.match(r"Prediction \d+/12", text) for text in texts)
    # Bounded: no more than a look each half second, and one at each end.
    assert len(texts) < 60


def test_an_evaluation_and_a_prediction_by_themselves(executed: Any) -> None:
    for outputs, name in ((executed[0][1], "eval"), (executed[0][2], "test")):
        (html,) = shown(outputs)
        text = words(html)
        assert re.fullmatch(rf"{name}_loss {name}_&lt;f1&gt; \d\.\d{{4}} 0\.5000", text), text
        assert "<progress" not in html


def test_an_error_leaves_the_display_as_it_stood(executed: Any) -> None:
    outputs = executed[0][3]
    (html,) = shown(outputs)
    assert re.match(r"Training 0/12 0% .*in all", words(html)), words(html)
    assert outputs[-1].output_type == "error"
