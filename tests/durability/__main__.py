"""`python -m durability`: the kills of soak.py, in a process that has the shim loaded."""

from __future__ import annotations

import os
import sys
import tempfile

from durability import faults

if (reason := faults.lacking()) is not None:
    sys.exit(f"Nothing is killed: {reason}.")
if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
    # In memory where that is to be had: a killed process loses nothing that it has written.
    root = tempfile.mkdtemp(prefix="kills-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    environment = {**os.environ, "LD_PRELOAD": faults.build(root), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "durability", "--root", root, *sys.argv[1:]]
    os.execve(sys.executable, words, environment)

from durability.soak import main  # torch is loaded once, with the shim

sys.exit(main())
