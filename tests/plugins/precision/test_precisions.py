"""Precisions: policies, contexts, results on a CPU, and what cannot be had here in a sentence."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain.autocast import install
from drivetrain.plugin import Weight, import_string
from drivetrain_plugins import precision as kind

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def plugin(name: str, **options: Any) -> Any:
    info = getattr(kind, name.upper())
    cls = info.options_class()
    return import_string(info.implementation)(*([cls(**options)] if cls else []))


def problems(make_run: Any, name: str, **arguments: Any) -> list[str]:
    return list(getattr(kind, name.upper()).probe(make_run(**arguments).args))


def test_claims(make_run):
    def claims(**arguments: Any) -> dict[str, Any]:
        args = make_run(**arguments).args
        infos = (kind.FP32, kind.BF16, kind.FP16)
        return {info.name: claim for info in infos if (claim := info.chosen_by(args)) is not None}

    assert {name: claim.weight for name, claim in claims().items()} == {"fp32": Weight.DEFAULT}
    found = claims(bf16=True)
    assert found["bf16"].reason == "bf16=True"
    assert max(found.values(), key=lambda claim: claim.weight) is found["bf16"]


def test_policies(make_run):
    policy = plugin("fp32").make_precision(make_run()).policy
    assert (policy.parameter, policy.compute, policy.loss_scale, policy.evaluation) == (
        None,
        None,
        None,
        None,
    )
    policy = plugin("bf16").make_precision(make_run(bf16=True, bf16_full_eval=True)).policy
    assert (policy.name, policy.compute, policy.loss_scale) == ("bf16", torch.bfloat16, None)
    assert policy.evaluation is torch.bfloat16
    policy = plugin("fp32").make_precision(make_run(fp16_full_eval=True)).policy
    assert policy.evaluation is torch.float16
    policy = plugin("fp16", growth_interval=7).make_precision(make_run()).policy
    assert policy.compute is torch.float16
    scaler = torch.amp.GradScaler("cpu", **policy.loss_scale)
    assert scaler.get_scale() == 65536.0
    assert scaler.get_growth_interval() == 7


@pytest.mark.parametrize(
    ("option", "value"),
    [("init_scale", 0.0), ("growth_factor", 1.0), ("backoff_factor", 1.0), ("growth_interval", 0)],
)
def test_loss_scale_options_are_checked(option, value):
    with pytest.raises(ValueError, match=f"option '{option}'"):
        plugin("fp16", **{option: value})


# -- autocast --------------------------------------------------------------------------------------------


def test_fp32_enters_nothing(make_run):
    precision = plugin("fp32").make_precision(make_run())
    context = precision.autocast("cpu")
    assert context is precision.autocast("cpu")
    with context:
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_is_autocast_over_float32_weights(make_run):
    model = nn.Linear(16, 16)
    x = torch.randn(8, 16)
    precision = plugin("bf16").make_precision(make_run(model, bf16=True))
    with precision.autocast("cpu"):
        y = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert model.weight.dtype is torch.float32
    assert model.weight.grad is not None
    assert model.weight.grad.dtype is torch.float32


def test_bf16_trains_near_float32_with_losses_in_float32(make_run):
    def train(name: str) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        precision = plugin(name).make_precision(make_run(model))
        undo = install(model, lambda: precision.autocast("cpu")) if precision.policy.compute else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
        losses = []
        for _ in range(20):
            logits = model(x)
            assert logits.dtype is torch.float32
            loss = nn.functional.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if undo:
            undo()
            assert model(x).dtype is torch.float32
        return losses

    exact, mixed = train("fp32"), train("bf16")
    assert mixed == pytest.approx(exact, rel=0.02)
    assert mixed != exact


def test_autocast_within_itself_and_in_threads_is_left_as_it_was(make_run):
    precision = plugin("bf16").make_precision(make_run())
    with precision.autocast("cpu"), precision.autocast("cpu"):
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    seen: list[bool] = []

    def other() -> None:
        with precision.autocast("cpu"):
            pass
        seen.append(torch.is_autocast_enabled("cpu"))

    with precision.autocast("cpu"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [False]
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError, match="inside"), precision.autocast("cpu"):
        raise RuntimeError("inside")
    assert not torch.is_autocast_enabled("cpu")


# -- what cannot be had here -----------------------------------------------------------------------------


@no_cuda
def test_fp16_without_cuda(make_run):
    assert problems(make_run, "fp16", use_cpu=False) == [
        "fp16=True needs a CUDA device, and this machine has none. Use bf16=True, which works on this CPU."
    ]


def test_fp16_on_the_cpu_by_choice(make_run):
    assert problems(make_run, "fp16", use_cpu=True) == [
        "fp16=True needs a CUDA device, and use_cpu=True keeps this run on the CPU. "
        "Use bf16=True, which works on this CPU."
    ]


@no_cuda
def test_tf32_and_half_evaluation_without_cuda(make_run):
    for name in ("fp32", "bf16"):
        assert problems(make_run, name, use_cpu=False, tf32=True) == [
            "tf32=True needs a CUDA device of the Ampere generation or later, and this machine has none. "
            "Leave tf32 out."
        ]
    assert problems(make_run, "fp32", use_cpu=False, fp16_full_eval=True) == [
        "fp16_full_eval=True needs a CUDA device, and this machine has none. "
        "Use bf16_full_eval=True, which works on this CPU."
    ]
    assert problems(make_run, "fp32", tf32=False, bf16_full_eval=True) == []


@no_cuda
@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        (
            "apex",
            "'apex' needs apex.amp, which is not installed, and which apex has given up: with fp16=True",
        ),
        ("cuda_amp", "half_precision_backend='cuda_amp' needs a CUDA device"),
    ],
)
def test_backends(make_run, backend, sentence):
    args = make_run(half_precision_backend=backend).args
    found = list(kind.FP16.probe(args))
    assert sentence in found[0]
    assert list(kind.BF16.probe(make_run(bf16=True, half_precision_backend="cpu_amp").args)) == []


@pytest.mark.parametrize("has_amp", [True, False])
def test_an_apex_that_is_installed(make_run, tmp_path, monkeypatch, has_amp):
    """A stand-in for apex, which no index has: with mixed precision as it once was, or another package of its name."""
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").write_text("" if has_amp else "raise RuntimeError('not this one')")
    (package / "amp.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    found = list(kind.FP16.probe(make_run(half_precision_backend="apex").args))
    assert ("is not driven by drivetrain" in found[0]) is has_amp
    assert ("which is not installed" in found[0]) is not has_amp
    monkeypatch.delitem(sys.modules, "apex", raising=False)


def test_what_does_nothing_is_said(make_run):
    """A level of apex without apex, and a backend of mixed precision without mixed precision."""
    from drivetrain.resolve import resolve

    def inert(**arguments: Any) -> list[str]:
        return resolve(make_run(**arguments).args).inert

    assert inert(bf16=True, fp16_opt_level="O2") == [
        "fp16_opt_level='O2' has no effect under the precision bf16."
    ]
    assert inert(half_precision_backend="cpu_amp") == [
        "half_precision_backend='cpu_amp' has no effect under the precision fp32."
    ]
    assert inert(bf16=True, half_precision_backend="cpu_amp", bf16_full_eval=True) == []


# -- TF32: torch has its flags on every machine ------------------------------------------------------------


def _tf32() -> tuple[Any, ...]:
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision, matmul.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("wanted", [True, False, None])
@pytest.mark.parametrize("before", [None, True, False])
def test_tf32_is_set_for_the_run_and_put_back(make_run, wanted, before):
    matmul = torch.backends.cuda.matmul
    start = _tf32()
    try:
        if before is not None:
            matmul.allow_tf32 = before
        found = _tf32()
        run = make_run(tf32=wanted)
        precision = plugin("fp32").make_precision(run)
        precision.setup(run)
        assert matmul.allow_tf32 is (bool(before) if wanted is None else wanted)
        precision.close()
        assert _tf32() == found
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = "none"
    assert _tf32() == start


def test_tf32_beside_torchs_newer_interface(make_run):
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    try:
        run = make_run(tf32=False)
        precision = plugin("bf16").make_precision(run)
        precision.setup(run)
        assert matmul.fp32_precision == "ieee"
        precision.close()
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = "none"


@cuda
@pytest.mark.gpu
def test_fp16_on_cuda(make_run):
    run = make_run(use_cpu=False, fp16=True)
    assert list(kind.FP16.probe(run.args)) == []
    precision = plugin("fp16").make_precision(run)
    model = nn.Linear(16, 16).cuda()
    with precision.autocast("cuda"):
        assert model(torch.randn(4, 16, device="cuda")).dtype is torch.float16
