"""Every target for a share of the time: `running.py [SECONDS]`, 120 by default. Ends with 1 where one found something."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from fuzz.targets import TARGETS

HERE = Path(__file__).parent
FOUND = HERE / "found"  # inputs that failed once; the tests run each again


def main() -> int:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    failed = []
    for name in TARGETS:
        share = max(1, seconds // len(TARGETS))
        begun = time.monotonic()
        command = [sys.executable, "-W", "ignore", str(HERE / "one.py"), name, str(share), str(FOUND)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        said = done.stderr.decode(errors="replace")
        runs = re.findall(r"number_of_executed_units: (\d+)|Done (\d+) runs", said)
        count = "".join(runs[-1]) if runs else "?"
        print(f"{name:10} {count:>10} runs in {time.monotonic() - begun:.0f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(said[-6000:])
    if failed:
        print(f"Failed: {', '.join(failed)}. The inputs are in {FOUND}; run one by: one.py TARGET FILE")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
