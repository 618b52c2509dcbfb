"""CodeCarbon: the emissions file is read back."""

from __future__ import annotations

import csv
from pathlib import Path

from support.trackers import library, logged

library("codecarbon")


def test_a_line_a_training(tmp_path: Path) -> None:
    made = logged(tmp_path, "codecarbon", {"country": "FRA"})
    made.train()
    made.evaluate()  # no training, and no line
    made.train()
    with (tmp_path / "out" / "emissions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    assert [line["country_iso_code"] for line in lines] == ["FRA", "FRA"]
    assert all(float(line["energy_consumed"]) > 0 for line in lines)
