"""What is run on drivetrain: `pip install nox && nox -s tests`. Each session makes its own environment.

torch is installed first and by itself, in the version of constraints.txt and in the build that pip finds on
this machine. For another build (CUDA, ROCm) name it as pip would: `DRIVETRAIN_TORCH="torch==2.13.0 --index-url URL"`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "imports", "tests"]
nox.options.reuse_venv = "yes"

HERE = Path(__file__).parent
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
CONSTRAINED = ("-c", str(HERE / "constraints.txt"))
TORCH = shlex.split(os.environ.get("DRIVETRAIN_TORCH", "torch"))

# The reference: what transformers 4.34.0 still runs on.
REFERENCE = (
    "numpy<2",
    "pyarrow<21",
    "transformers==4.34.0",
    "accelerate==0.23.0",
    "datasets",
    "scikit-learn",
)

# One thread: the tests' tensors are too small for more. And byte code is kept, wherever the machine would not keep it:
# hundreds of tests start processes, and each would compile drivetrain anew.
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": ""}

# A file of tests goes to one process, which makes what its tests have in common once. More processes than these would
# have more memory than time: each loads torch, and many tests start processes of their own.
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")

# Trackers that are dear to install, in the versions that docs/loggers.md names; in two parts, since pip finds no end of
# them together.
TRACKERS = {
    "first": (
        "mlflow==3.17.2",
        "comet-ml==3.58.8",
        "clearml==2.1.12",
        "codecarbon==3.3.2",
        "trackio==0.43.0",
        "swanlab==0.10.3",
    ),
    "second": (
        "mlflow==3.17.2",
        "dagshub==0.7.3",
        "neptune==1.14.0.post2",
        "flytekit==1.16.31",
        "azureml-core==1.61.0.post4",
    ),
}

# The lowest versions that the project claims. torch stays the one that is tested: older ones are built for
# older versions of CUDA, which this session does not fetch.
MINIMUMS = (
    "pluggy==1.5.0",
    "typer==0.16.0",
    "rich==13.7.0",
    "safetensors==0.4.3",
    "numpy==1.26.0",
    "packaging==23.2",
    "tomlkit==0.12.5",
)


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, name))


def install(session: nox.Session, *requirements: str) -> None:
    """torch as the machine has it, then drivetrain and the rest, in the tested versions.

    A requirement `drivetrain[EXTRAS]` says which extras the editable install takes.
    """
    extras = [line.removeprefix("drivetrain") for line in requirements if line.startswith("drivetrain[")]
    others = [line for line in requirements if not line.startswith("drivetrain[")]
    session.install(*TORCH, *CONSTRAINED)
    session.install("-e", str(HERE) + "".join(extras), *others, *CONSTRAINED)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test but those that compare with other engines, and those that take minutes each."""
    install(session, *group("test"))
    session.run("pytest", *(session.posargs or ("-q", "-m", "not soak", *SIDE_BY_SIDE)), env=QUIET)


@nox.session
def soak(session: nox.Session) -> None:
    """The tests that take minutes each: workers killed and started anew, engines that compile their operators."""
    install(session, *group("test"))
    session.run("pytest", *(session.posargs or ("-q", "-m", "soak")), env=QUIET)


@nox.session
def kills(session: nox.Session) -> None:
    """Runs killed at every call of a save, and hundreds of times at random moments: `nox -s kills [-- --scale 0.2]`."""
    install(session, *group("test"))
    session.run(
        "python", "-m", "durability", *session.posargs, env={**QUIET, "PYTHONPATH": str(HERE / "tests")}
    )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Checkpoints of random contents, guided by the lines they reach: `nox -s fuzz [-- SECONDS]`, by default 120."""
    install(session, *group("fuzz"))
    path = os.pathsep.join((str(HERE), str(HERE / "tests")))
    session.run("python", "tests/fuzz/running.py", *session.posargs, env={**QUIET, "PYTHONPATH": path})


@nox.session
def ipex(session: nox.Session) -> None:
    """Intel's extension, which needs torch 2.8, an older one than drivetrain claims: it is installed without a check.

    torch 2.8 for Linux comes from the usual index with its CUDA libraries alone, 6 GB of them.
    """
    own = [line for line in PROJECT["project"]["dependencies"] if not line.startswith("torch")]
    session.install("torch==2.8.0", "intel-extension-for-pytorch==2.8.0", "numpy<2.4", "ruamel.yaml")
    session.install("numpy<2.4", "pytest", "pytest-timeout", *own)
    session.install("--no-deps", "-e", str(HERE))
    session.run("pytest", "tests/plugins/transform/test_ipex.py", *(session.posargs or ("-q",)), env=QUIET)


@nox.session
@nox.parametrize("which", list(TRACKERS))
def loggers(session: nox.Session, which: str) -> None:
    """Loggers with the real libraries, which are dear to install: a quarter of an hour, and 2 GB."""
    session.install(*TORCH, *CONSTRAINED)
    session.install("-e", str(HERE), "pytest", "pytest-timeout", *TRACKERS[which])
    # Warnings of these libraries, when they are imported, are not ours to mend.
    session.run(
        "pytest", "-W", "default", "tests/plugins/logger/real", *(session.posargs or ("-q",)), env=QUIET
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style and form."""
    session.install(*group("lint"), *CONSTRAINED)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    install(session, *group("types"))
    session.run("mypy")


@nox.session
def imports(session: nox.Session) -> None:
    """Who may import whom: the core imports no plugin and no vendor. Reads the sources, and runs none of them."""
    session.install(*group("imports"), *CONSTRAINED)
    session.run(
        "lint-imports", env={"PYTHONPATH": os.pathsep.join((str(HERE / "core"), str(HERE / "plugins")))}
    )


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; a warning, such as a broken link, ends it. `nox -s docs -- FOLDER` says where it goes."""
    session.install(*group("docs"), *CONSTRAINED)
    site = session.posargs[0] if session.posargs else str(Path(session.create_tmp()) / "site")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-E", "-b", "html", str(HERE / "docs"), site)


@nox.session
def notebook(session: nox.Session) -> None:
    """The progress in a notebook: a real one, executed by a real kernel."""
    install(session, *group("notebook"))
    session.run("pytest", "tests/plugins/callback/test_notebook.py", *(session.posargs or ("-q",)), env=QUIET)


@nox.session
def screenshots(session: nox.Session) -> None:
    """The pictures of the documentation, made anew from real runs; needs Chromium. `-- PART ...` for some of them."""
    install(session, *group("screenshots"))
    session.run("python", "docs/make_screenshots.py", *session.posargs, env=QUIET)


@nox.session
def parity(session: nox.Session) -> None:
    """The same script on transformers 4.34.0 and on drivetrain: `nox -s parity [-- PATTERN]`."""
    cases = ("--case", session.posargs[0]) if session.posargs else ()
    session.install(*TORCH, *CONSTRAINED)
    session.install("-e", str(HERE), *REFERENCE)
    out = Path(session.create_tmp()).resolve()
    environment = {**QUIET, "CUDA_VISIBLE_DEVICES": ""}
    for engine in ("transformers", "drivetrain"):
        shutil.rmtree(out / engine, ignore_errors=True)
        command = ("python", "parity/run.py", "--engine", engine, "--out", str(out / engine), *cases)
        session.run(*command, env=environment)
    session.run("python", "parity/compare.py", str(out / "transformers"), str(out / "drivetrain"))


@nox.session
def strategies(session: nox.Session) -> None:
    """Every strategy's real engine against one process, checkpoints from each to each, and what goes with what.

    `-- --out docs/strategies/table.md --combinations docs/strategies/combinations.md` writes the tables.
    """
    install(session, *group("test"))
    session.run("python", "tests/strategies/running.py", *session.posargs, env=QUIET)


@nox.session
def strategies_soak(session: nox.Session) -> None:
    """Every checkpoint under every strategy, with 1, 2 and 4 processes."""
    install(session, *group("test"))
    session.run("python", "tests/strategies/running.py", "--soak", *session.posargs, env=QUIET)


@nox.session
def bench(session: nox.Session) -> None:
    """What a step costs, beside other engines, and what an import costs."""
    install(session, *group("bench"))
    session.run("python", "bench/imports.py", *session.posargs)
    session.run("python", "bench/overhead.py", *session.posargs)


@nox.session(name="bench-strategies")
def bench_strategies(session: nox.Session) -> None:
    """What a step costs under each strategy, beside the same engine by hand and under other trainers."""
    install(session, *group("bench"))
    session.run("python", "bench/strategies.py", *session.posargs)


@nox.session(name="bench-checkpoint")
def bench_checkpoint(session: nox.Session) -> None:
    """How long a checkpoint holds up a step, how fast it is written, and how soon a resume takes its first step."""
    install(session, *group("bench"))
    session.run("python", "bench/checkpoint.py", *session.posargs, env=QUIET)


@nox.session
def minimums(session: nox.Session) -> None:
    """The lowest versions of the runtime dependencies, beside transformers 4.34.0."""
    session.install(*TORCH, *CONSTRAINED)
    beside = (
        "transformers==4.34.0",
        "pyarrow<21",
        "pandas<3",
        "datasets",
        "scikit-learn",
        "deepspeed",
        "fairscale",
    )
    tools = ("pytest", "pytest-timeout", "hypothesis", "psutil", "hatchling", "editables")
    session.install("-e", str(HERE), *MINIMUMS, *beside, *tools)
    session.run("python", "-c", "import drivetrain.trainer, transformers, numpy; print(numpy.__version__)")
    # Warnings of that time's releases about today's others are not ours to mend.
    old = ("-W", "default::DeprecationWarning", "-W", "default::FutureWarning", "-W", "default::UserWarning")
    session.run("pytest", *old, *(session.posargs or ("-q", "-m", "not slow")), env=QUIET)
