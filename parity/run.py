"""Run the parity cases on one engine: ``python parity/run.py --engine {transformers,drivetrain} --out DIR``.

One process runs all of them, each from freshly seeded generators and in a folder of its own; one .json and one .npz
a case are written to DIR. An exception is a result like any other: it is recorded and compared.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NAMES = (
    "Trainer",
    "TrainingArguments",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "DefaultFlowCallback",
    "PrinterCallback",
    "ProgressCallback",
    "EarlyStoppingCallback",
    "EvalPrediction",
    "set_seed",
)


def load_engine(engine: str) -> SimpleNamespace:
    """The documented names of the engine, under one namespace."""
    if engine == "transformers":
        import transformers as module

        if module.__version__ != "4.34.0":
            sys.exit(f"The reference is transformers 4.34.0, and {module.__version__} is installed here.")
    else:
        import drivetrain as module
    return SimpleNamespace(**{name: getattr(module, name) for name in NAMES})


def fresh_process_state(engine: str) -> None:
    """Undo what the reference keeps for a whole process (precision, accumulation), and seed everything."""
    import numpy
    import torch

    if engine == "transformers":
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    torch.use_deterministic_algorithms(False)
    random.seed(1234)
    numpy.random.seed(1234)
    torch.manual_seed(1234)


def run_case(
    name: str, engine: str, hf: SimpleNamespace, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    from kit import REGISTRY, Kit

    function, ours = REGISTRY[name]
    kit = Kit(engine, hf, folder)
    record: dict[str, Any] = {"case": name, "ours": ours}
    if ours and engine != "drivetrain":
        return {**record, "status": "not for this engine"}, {}
    output = io.StringIO()
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            function(kit)
            kit.finish()
        record["status"] = "ok"
    except Exception as error:
        record["status"] = "error"
        record["error"] = [type(error).__name__, str(error)[:500]]
        record["traceback"] = traceback.format_exc()[-4000:]
    record["seconds"] = round(time.perf_counter() - started, 3)
    record["values"] = kit.record
    return record, kit.arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("transformers", "drivetrain"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", default="*", help="a shell pattern over the names of cases")
    options = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")
    import numpy
    import torch

    torch.set_num_threads(1)
    hf = load_engine(options.engine)
    import cases  # noqa: F401  (fills the registry)
    from kit import REGISTRY

    if options.engine == "transformers":
        logging.getLogger("transformers").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in REGISTRY if fnmatch.fnmatch(name, options.case)]
    started = time.perf_counter()
    failed = 0
    for index, name in enumerate(names):
        fresh_process_state(options.engine)
        folder = Path(tempfile.mkdtemp(prefix="parity-"))
        try:
            record, arrays = run_case(name, options.engine, hf, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        stem = name.replace("/", "--")
        (options.out / f"{stem}.json").write_text(json.dumps(record, indent=1))
        numpy.savez(options.out / f"{stem}.npz", **arrays)
        if record["status"] == "error":
            failed += 1
            print(f"  {name}: {record['error'][0]}: {record['error'][1][:150]}", flush=True)
        if index % 25 == 24:
            gc.collect()
    print(
        f"{options.engine}: {len(names)} cases in {time.perf_counter() - started:.0f} s, {failed} ended in an error"
    )


if __name__ == "__main__":
    main()
