"""Back into the queue: a job of SLURM that was told to leave is put there again (`requeue`)."""

from __future__ import annotations

import logging
import os
import subprocess

logger = logging.getLogger("drivetrain")

_PATIENCE = 30.0  # seconds that scontrol may take


def job_of_slurm() -> str | None:
    """The number by which scontrol knows this job, that of its task in an array; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> None:
    """Has SLURM queue this job again. What goes wrong is said; the checkpoint stands."""
    job = job_of_slurm()
    if job is None:
        return
    words = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except FileNotFoundError:
        problem = "there is no scontrol on the PATH"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    else:
        if done.returncode == 0:
            logger.warning("Job %s is in the queue again, and will go on from this checkpoint.", job)
            return
        problem = (done.stderr or done.stdout).strip() or f"it ended with exit code {done.returncode}"
    logger.warning(
        "`%s` failed: %s. The checkpoint stands: submit the job again, with resume_from_checkpoint=True.",
        " ".join(words),
        problem,
    )
