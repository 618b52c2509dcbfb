"""Strangers' packages: installed by pip, found by their entry points, and run."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import pytest
from support.installed import PACKAGES, ROOT, Site

import drivetrain

pytestmark = pytest.mark.timeout(1500)

CONTRIB = ROOT / "contrib"
PUBLIC = {"drivetrain", "drivetrain.testing"}
OTHERS = {"torch", "pytest", "safetensors", "fsspec"}
KINDS = {"drivetrain-fsspec": "hub"}  # the others are strategies


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or ".")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_it_imports_the_public_package_alone(package: str) -> None:
    own = package.replace("-", "_")
    files = list((CONTRIB / package).rglob("*.py"))
    assert {path.parent.name for path in files} >= {own, "tests"}
    for path in files:
        beside = {other.stem for other in path.parent.glob("*.py")}
        for module in imported(path) - PUBLIC - beside - {"__future__"}:
            top = module.partition(".")[0]
            assert top in OTHERS | {own} | set(sys.stdlib_module_names), f"{path.name} imports {module}"


def test_what_a_slot_must_do_is_public() -> None:
    """The Protocols; and one process's strategy, from which others begin, has every method of its own."""
    for name in ("Strategy", "Precision", "Hub", "Search", "Launcher"):
        assert getattr(getattr(drivetrain, name), "_is_protocol", False), name
    methods = {name for name in vars(drivetrain.Strategy) if not name.startswith("_")}
    assert methods > {"prepare", "micro_batch", "update"}
    assert methods <= set(dir(drivetrain.WholeParameters))


def test_they_are_listed_and_shown(site: Site) -> None:
    listed = site.run("drivetrain", "plugins", "list").splitlines()
    for package in PACKAGES:
        name = package.removeprefix("drivetrain-")
        assert [KINDS.get(package, "strategy"), name, package, "0.1.0", "ready"] in [
            line.split() for line in listed
        ]
    shown = site.run("drivetrain", "plugins", "show", "signsgd")
    for line in (
        "from       drivetrain-signsgd 0.1.0",
        "hooks      make_strategy, on_train_end, save_state, load_state",
        "error_feedback  bool   True     what the signs leave of a gradient is kept",
        "not with   precision:fp16",
    ):
        assert line in shown


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small task for the command line."""
    return Path(
        shutil.copytree(CONTRIB / "drivetrain-average" / "example", tmp_path_factory.mktemp("task") / "waves")
    )


def test_the_command_line_trains_under_one(site: Site, task: Path) -> None:
    printed = site.run(
        "drivetrain", "train", "waves.toml", "--strategy", "signsgd", "--nproc", "2", "--use-cpu",
        "--num-train-epochs", "1", folder=task,
    )  # fmt: skip
    assert "strategy   signsgd  (strategy='signsgd')" in printed
    assert "Done" in printed
    assert (task / "runs" / "waves" / "model.safetensors").exists()


def test_a_wrong_option_and_a_wrong_name_are_said(site: Site, task: Path) -> None:
    command = ("drivetrain", "train", "waves.toml", "--use-cpu", "--output-dir", "runs/none")
    wrong = site.run(*command, "--strategy", "localsgd", "--plugins.localsgd.evry", "3", folder=task, code=2)
    assert "the strategy 'localsgd' has no option 'evry'. Did you mean 'every'?" in wrong
    assert not (task / "runs" / "none").exists()
    unknown = site.run(*command, "--strategy", "sigsgd", folder=task, code=2)
    assert "Unknown strategy 'sigsgd'. Did you mean 'signsgd'? Installed: average, " in unknown


@pytest.mark.soak
@pytest.mark.parametrize("package", ["drivetrain-localsgd", "drivetrain-signsgd"])
def test_it_is_the_algorithm_by_hand(site: Site, package: str) -> None:
    """The package's own tests, but for the contract and what takes more processes."""
    quick = ("--ignore", f"contrib/{package}/tests/test_contract.py", "-k", "not another_number_of_processes")
    assert " passed" in site.run("pytest", "-q", "-p", "no:cacheprovider", f"contrib/{package}", *quick)


def test_the_command_line_pushes_to_one(site: Site, task: Path) -> None:
    """Chosen by the form of the address; and its options, by the config's own table."""
    there = task / "there"
    address = ("--hub-model-id", there.as_uri(), "--plugins.fsspec.block_size", "7")
    printed = site.run(
        "drivetrain", "train", "waves.toml", "--use-cpu", "--max-steps", "2", "--output-dir", "runs/pushed",
        "--push-to-hub", "--hub-strategy", "checkpoint", "--save-steps", "2", *address, folder=task,
    )  # fmt: skip
    assert f"fsspec  (hub_model_id='{there.as_uri()}')" in printed
    assert (there / "last-checkpoint" / "manifest.json").exists()
    pushed = site.run("drivetrain", "push", "runs/pushed", "--to", (task / "other").as_uri(), folder=task)
    assert f"{(task / 'other').as_uri()}  (fsspec)" in pushed
    assert (task / "other" / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()


@pytest.mark.soak
def test_after_an_error_of_one_all_meet_again(site: Site, tmp_path: Path) -> None:
    """`restarts` of the strategy `average`: its state is there in another process group too."""
    script = ROOT / "tests" / "core" / "loop" / "exception_ranks.py"
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = site.run(*launch, str(script), str(tmp_path), "average", path=(ROOT / "tests",))
    assert printed.count(": fine on rank") == 22


@pytest.mark.soak
@pytest.mark.parametrize("package", PACKAGES)
def test_it_keeps_the_contract(site: Site, package: str) -> None:
    """All of the package's own tests."""
    assert " passed" in site.run("pytest", "-q", "-p", "no:cacheprovider", f"contrib/{package}", timeout=1400)
