"""XLA is refused, and the error says what is missing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.toy import trainer

from drivetrain import ConfigurationError

TORCH = ".".join(version("torch").split(".")[:2])


def pretend_torch_xla(folder: Path, release: str, model: str) -> None:
    """A package of that name: the real one has no release for this torch, and there is no device."""
    package = folder / "torch_xla" / "core"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "xla_model.py").write_text(model)
    information = folder / f"torch_xla-{release}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_xla\nVersion: {release}\n")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_xla"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return folder


def test_to_be_listed_it_imports_no_torch() -> None:
    infos = (
        "drivetrain_plugins.strategy",
        "drivetrain_plugins.strategy.xla.info",
        "drivetrain_plugins.strategy.fairscale.info",
    )
    code = f"import sys, {', '.join(infos)}, drivetrain_plugins.strategy.fairscale.options; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("settings", [{"tpu_num_cores": 8}, {"strategy": "xla"}])
def test_without_torch_xla(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path, **settings).train()
    assert str(caught.value) == (
        f"Strategy 'xla' needs torch_xla=={TORCH}.*, which is not installed. Run: pip install 'torch_xla=={TORCH}.*'"
    )


def test_torch_xla_of_another_torch(path: Path, tmp_path: Path) -> None:
    pretend_torch_xla(path, "1.0.0", "")
    with pytest.raises(
        ConfigurationError, match=rf"needs torch_xla=={TORCH}\.\*, but here is torch_xla 1\.0\.0\."
    ):
        trainer(tmp_path, tpu_num_cores=8).train()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("def get_xla_supported_devices(): return None", "needs an XLA device, and torch_xla finds none"),
        (
            "def get_xla_supported_devices(): raise RuntimeError('no TPU')",
            r"no XLA device .*\(RuntimeError: no TPU\)",
        ),
        ("def get_xla_supported_devices(): return ['xla:0']", "cannot train yet"),
    ],
)
def test_with_torch_xla(path: Path, tmp_path: Path, model: str, sentence: str) -> None:
    pretend_torch_xla(path, f"{TORCH}.0", model)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        trainer(tmp_path, tpu_num_cores=8).train()
    assert "leave tpu_num_cores out" in str(caught.value)
