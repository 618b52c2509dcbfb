"""Resolution: one plugin for each slot, every problem collected, each in one sentence with its cure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.strangers import Site
from support.toy import trainer

from drivetrain import ConfigurationError
from drivetrain.resolve import Plan, resolve
from drivetrain.settings import Settings

Problems = Callable[..., tuple[str, ...]]
MakePlan = Callable[..., Plan]
Without = Callable[[str, str], None]


# -- the slots -----------------------------------------------------------------------------------------


def test_the_defaults_are_plugins_too(plan: MakePlan) -> None:
    found = plan()
    assert {active.kind: active.name for active in found.active if active.kind != "callback"} == {
        "strategy": "single",
        "precision": "fp32",
        "optimizer": "adamw_torch",
        "scheduler": "linear",
    }
    assert ("strategy", "single", "0.1.0", "one process") in found.describe()


def test_arguments_choose(plan: MakePlan) -> None:
    found = plan(bf16=True, optim="adafactor", lr_scheduler_type="cosine")
    assert found.slot("precision").name == "bf16"  # type: ignore[union-attr]
    assert found.slot("precision").reason == "bf16=True"  # type: ignore[union-attr]
    assert found.slot("optimizer").name == "adafactor"  # type: ignore[union-attr]
    assert found.slot("scheduler").name == "cosine"  # type: ignore[union-attr]


def test_an_unknown_strategy(problems: Problems) -> None:
    (sentence,) = problems(strategy="fsdpp")
    assert sentence == (
        "Unknown strategy 'fsdpp'. Did you mean 'fsdp'? Installed: ddp, deepspeed, fairscale, fsdp, single, xla."
    )


def test_a_strangers_strategy_is_chosen_by_name(plan: MakePlan, site: Site) -> None:
    site.plugin(
        "strategy",
        "ring",
        body="from drivetrain import hookimpl as h\n@h\ndef make_strategy(self, run): return 1\n",
    )
    found = plan(strategy="ring").slot("strategy")
    assert found is not None
    assert (found.name, found.version, found.reason) == ("ring", "1.0", "strategy='ring'")
    assert type(found.plugin).__module__ == "stranger_strategy_ring"


def test_a_strangers_strategy_is_chosen_by_its_claim(plan: MakePlan, site: Site) -> None:
    site.plugin(
        "strategy",
        "ring",
        fields="chosen_by=lambda args: Claim('ring topology', Weight.ENVIRONMENT)",
        body="@hookimpl\ndef make_strategy(self, run): return 1\n",
    )
    assert plan().slot("strategy").reason == "ring topology"  # type: ignore[union-attr]


def test_two_claims_name_both(problems: Problems, site: Site) -> None:
    for name, word in (("ring", "seed=7"), ("star", "seed!=42")):
        site.plugin(
            "strategy", name, fields=f"chosen_by=lambda args: Claim({word!r}) if args.seed == 7 else None"
        )
    (sentence,) = problems(seed=7)
    assert sentence == (
        "Two plugins claim the slot 'strategy': 'ring' by seed=7, and 'star' by seed!=42. Leave one of them out."
    )


def test_a_named_strategy_beside_an_argument_that_means_another(problems: Problems, site: Site) -> None:
    site.plugin(
        "strategy", "ring", fields="chosen_by=lambda args: Claim('seed=7') if args.seed == 7 else None"
    )
    (sentence,) = problems(seed=7, strategy="single")
    assert "'single' by strategy='single', and 'ring' by seed=7" in sentence


def test_two_precisions(tmp_path: Path, problems: Problems) -> None:
    (sentence,) = problems(bf16=True, precision="fp32")
    assert (
        "Two plugins claim the slot 'precision': 'fp32' by precision='fp32', and 'bf16' by bf16=True"
        in sentence
    )


# -- requirements, probes, options ---------------------------------------------------------------------


def test_a_missing_requirement_has_the_pip_line(problems: Problems, site: Site) -> None:
    site.plugin("strategy", "deep", fields='requires=("deepspeed_of_nobody",), extra="deepspeed"')
    (sentence,) = problems(strategy="deep")
    assert sentence == (
        "Strategy 'deep' needs deepspeed_of_nobody, which is not installed. Run: pip install 'drivetrain[deepspeed]'"
    )


def test_missing_requirements_of_a_strangers_own(problems: Problems, site: Site) -> None:
    site.plugin(
        "strategy",
        "deep",
        fields='requires=("nobody-a>=2", "nobody-b"), extra="all", distribution="drivetrain-deep"',
    )
    (sentence,) = problems(strategy="deep")
    assert sentence == (
        "Strategy 'deep' needs nobody-a>=2 and nobody-b, which are not installed. "
        "Run: pip install 'drivetrain-deep[all]'"
    )


def test_a_requirement_of_another_version(problems: Problems, site: Site) -> None:
    site.add("engine-of-ours", {}, version="1.4")
    site.plugin("strategy", "deep", fields='requires=("engine-of-ours>=2",)')
    (sentence,) = problems(strategy="deep")
    assert sentence == (
        "Strategy 'deep' needs engine-of-ours>=2, but here is engine-of-ours 1.4. Run: pip install 'engine-of-ours>=2'"
    )


def test_a_requirement_for_another_platform_is_none(plan: MakePlan, site: Site) -> None:
    site.plugin("callback", "deep", fields="requires=(\"nobody-a; sys_platform == 'plan9'\",)", body=LISTENER)
    assert [found.name for found in plan(plugins={"deep": {}}).of_kind("callback")].count("deep") == 1


def test_a_probe_says_why_not_here(problems: Problems, site: Site) -> None:
    site.plugin("strategy", "deep", fields="probe=lambda args: ['It needs an ocean.', 'And a diver.']")
    assert problems(strategy="deep") == ("It needs an ocean.", "And a diver.")


def test_a_probe_that_fails_is_named(problems: Problems, site: Site) -> None:
    site.plugin("strategy", "deep", fields="probe=lambda args: 1 / 0")
    assert problems(strategy="deep") == (
        "The probe of strategy 'deep' failed: ZeroDivisionError: division by zero",
    )


OPTIONS = """
from dataclasses import dataclass
from drivetrain import PluginInfo, hookimpl


@dataclass(frozen=True)
class Options:
    every: int = 10
    loudly: bool = False

    def __post_init__(self):
        if self.every < 1:
            raise ValueError("every must be at least 1")


class Plugin:
    def __init__(self, options):
        self.options = options

    @hookimpl
    def on_step_end(self, run): ...


INFO = PluginInfo(name="greeter", kind="callback", summary="", implementation="greeter_stranger:Plugin", options=Options)
"""
LISTENER = "@hookimpl\ndef on_step_end(self, run): ...\n"


@pytest.fixture
def greeter(site: Site) -> Site:
    site.add(
        "drivetrain-greeter", {"callback": {"greeter": "greeter_stranger:INFO"}}, greeter_stranger=OPTIONS
    )
    return site


def test_options_reach_the_plugin(plan: MakePlan, greeter: Site) -> None:
    found = plan(plugins={"greeter": {"every": 3}})
    assert found.options("callback", "greeter").every == 3
    assert next(active for active in found.active if active.name == "greeter").plugin.options.every == 3
    with pytest.raises(KeyError):
        found.options("callback", "nobody")


def test_an_unknown_option_has_the_nearest(problems: Problems, greeter: Site) -> None:
    (sentence,) = problems(plugins={"greeter": {"evry": 3}})
    assert sentence == "Callback 'greeter' has no option 'evry'. Did you mean 'every'? It has: every, loudly."


def test_an_option_that_the_plugin_refuses(problems: Problems, greeter: Site) -> None:
    assert problems(plugins={"greeter": {"every": 0}}) == (
        "The options of callback 'greeter' are wrong: every must be at least 1",
    )


def test_options_for_a_plugin_without_any(problems: Problems, site: Site) -> None:
    site.plugin("callback", "plain", body=LISTENER)
    assert problems(plugins={"plain": {"every": 3}}) == (
        "Callback 'plain' has no options, but got {'every': 3}.",
    )


def test_options_for_a_plugin_that_is_not_there(problems: Problems, greeter: Site) -> None:
    (sentence,) = problems(plugins={"greetr": {"every": 3}})
    assert sentence.startswith("Unknown plugin 'greetr'. Did you mean 'greeter'? Installed: ")


def test_options_for_a_slot_that_is_not_active_are_said_to_do_nothing(plan: MakePlan) -> None:
    assert (
        "plugins['ddp'] has no effect: the strategy 'ddp' is not active." in plan(plugins={"ddp": {}}).inert
    )


# -- enabled by the project ----------------------------------------------------------------------------


def test_installed_is_not_active(plan: MakePlan, greeter: Site) -> None:
    assert "greeter" not in [active.name for active in plan().active]


def test_enabled_in_drivetrain_toml(greeter: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "drivetrain.toml").write_text(
        '[plugins]\nenable = ["greeter"]\n[plugins.greeter]\nevery = 4\n'
    )
    monkeypatch.chdir(project)
    made = trainer(tmp_path / "out", max_steps=1)
    made.train()
    active = next(found for found in made.run.plan.active if found.name == "greeter")
    assert active.reason == f"enabled in {project / 'drivetrain.toml'}"
    assert active.plugin.options.every == 4


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        (
            "from drivetrain import PluginInfo\n"
            "INFO = PluginInfo(name='lost', kind='callback', summary='', implementation='lost_stranger:Nowhere')",
            "cannot be loaded: AttributeError",
        ),
    ],
)
def test_an_enabled_plugin_that_cannot_load_is_an_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str
) -> None:
    site.add("drivetrain-lost", {"callback": {"lost": "lost_stranger:INFO"}}, lost_stranger=source)
    (tmp_path / "drivetrain.toml").write_text('[plugins]\nenable = ["lost"]\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        trainer(tmp_path / "out", max_steps=1).train()
    assert "Callback 'lost'" in str(caught.value)
    assert sentence in str(caught.value)


def test_enabled_and_not_installed(make_args: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(make_args(), settings=Settings(Path("drivetrain.toml"), ("gradient_norm",)))
    assert str(caught.value).startswith(
        "drivetrain.toml: Unknown plugin 'gradient_norm'. Did you mean 'gradient_norms'?"
    )


def test_a_broken_plugin_that_nobody_asked_for_is_a_warning(
    plan: MakePlan, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.add("drivetrain-broken", {"strategy": {"broken": "broken_stranger:INFO"}}, broken_stranger="1 / 0")
    with caplog.at_level(logging.WARNING, "drivetrain"):
        assert plan().slot("strategy").name == "single"  # type: ignore[union-attr]
    assert "Strategy 'broken' of drivetrain-broken 1.0 cannot be loaded" in caplog.text
    assert "It was not asked for, so the run goes on without it." in caplog.text


def test_a_broken_plugin_that_was_asked_for_is_an_error(problems: Problems, site: Site) -> None:
    site.add("drivetrain-broken", {"strategy": {"broken": "broken_stranger:INFO"}}, broken_stranger="1 / 0")
    (sentence,) = problems(strategy="broken")
    assert sentence.startswith(
        "Strategy 'broken' of drivetrain-broken 1.0 cannot be loaded: ZeroDivisionError"
    )


def test_a_claim_that_fails_is_a_warning_too(
    plan: MakePlan, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.plugin("callback", "rash", fields="chosen_by=lambda args: args.no_such_argument")
    with caplog.at_level(logging.WARNING, "drivetrain"):
        plan()
    assert (
        "Callback 'rash' of drivetrain-rash 1.0 cannot tell whether it is wanted: AttributeError"
        in caplog.text
    )


@pytest.mark.parametrize("fields", ["chosen_by=lambda args: 1 / 0", "no_such_field=1"])
def test_a_broken_plugin_whose_argument_is_set_is_an_error(
    problems: Problems, site: Site, without: Without, fields: str
) -> None:
    """The run must not go on without tracing because the plugin that traces is broken."""
    without("transform", "jit")
    site.plugin("transform", "jit", fields=f"place='before_wrap', {fields}")
    (sentence,) = problems(jit_mode_eval=True)
    assert sentence.startswith(
        "jit_mode_eval=True needs the transform 'jit': Transform 'jit' of drivetrain-jit 1.0 cannot"
    )


# -- conflicts, order ----------------------------------------------------------------------------------


def test_a_conflict_names_both_and_the_cure(problems: Problems, site: Site) -> None:
    site.plugin("callback", "peek", fields="conflicts={'strategy:single': 'disable peek.'}", body=LISTENER)
    assert problems(plugins={"peek": {}}) == (
        "Callback 'peek' and strategy 'single' exclude each other: disable peek.",
    )


def test_a_conflict_that_is_not_there(plan: MakePlan, site: Site) -> None:
    site.plugin("callback", "peek", fields="conflicts={'strategy:ddp': 'disable peek.'}", body=LISTENER)
    assert "peek" in [active.name for active in plan(plugins={"peek": {}}).active]


def test_order_by_before_and_after(plan: MakePlan, site: Site) -> None:
    site.plugin("callback", "a", fields="after=('c',)", body=LISTENER)
    site.plugin("callback", "b", fields="before=('c',)", body=LISTENER)
    site.plugin("callback", "c", fields="after=('not_there',)", body=LISTENER)
    site.plugin("callback", "d", body=LISTENER)
    names = [active.name for active in plan(plugins={"d": {}, "c": {}, "b": {}, "a": {}}).of_kind("callback")]
    assert [name for name in names if len(name) == 1] == ["b", "c", "a", "d"]


def test_listeners_are_called_in_their_order(plan: MakePlan, site: Site) -> None:
    for name, fields in (("a", "after=('b',)"), ("b", "")):
        site.plugin(
            "callback",
            name,
            fields=fields,
            body=f"@hookimpl\ndef on_step_end(self, run): run.append(self.name)\nname = {name!r}\n",
        )
    called: list[str] = []
    for call in plan(plugins={"a": {}, "b": {}}).events.on_step_end:
        call(called)
    assert called == ["b", "a"]


def test_a_circle(problems: Problems, site: Site) -> None:
    site.plugin("transform", "a", fields="after=('b',)")
    site.plugin("transform", "b", fields="after=('a',)")
    site.plugin("transform", "c", fields="after=('b',)")
    (sentence,) = problems(plugins={"a": {}, "b": {}, "c": {}})
    assert sentence == "The transforms 'a' and 'b' each ask to come before the other; disable one."


def test_a_wider_circle(problems: Problems, site: Site) -> None:
    for name, before in ("ab", "bc", "ca"):
        site.plugin("callback", name, fields=f"before=({before!r},)", body=LISTENER)
    (sentence,) = problems(plugins={"a": {}, "b": {}, "c": {}})
    assert (
        sentence == "The callbacks 'a', 'b' and 'c' ask in a circle to come before one another; disable one."
    )


def test_a_circle_of_one(problems: Problems, site: Site) -> None:
    site.plugin("callback", "a", fields="before=('a',)", body=LISTENER)
    assert problems(plugins={"a": {}}) == ("The callback 'a' asks to come before itself; disable it.",)


def test_a_wish_that_places_make_impossible(problems: Problems, plan: MakePlan, site: Site) -> None:
    """What is given the wrapped model cannot come before what is given the bare one, whatever it asks."""
    body = "from drivetrain import hookimpl as h\n@h\ndef transform_model(self, run, model): return model\n"
    late = "place='after_prepare', before=('gradient_checkpointing',)"
    site.plugin("transform", "late", fields=late, body=body)
    site.plugin("transform", "early", fields="place='before_wrap', after=('torch_compile',)", body=body)
    cure = "given the bare model (before_wrap): give both one place, or leave one of them out."
    assert problems(
        gradient_checkpointing=True, torch_compile_backend="aot_eager", plugins={"late": {}, "early": {}}
    ) == (
        f"The transform 'torch_compile' is to come before 'early', which is {cure}",
        f"The transform 'late' is to come before 'gradient_checkpointing', which is {cure}",
    )
    # Where the other is not active, there is no wish.
    names = [active.name for active in plan(plugins={"late": {}, "early": {}}).of_kind("transform")]
    assert names == ["early", "late"]


# -- all at once ---------------------------------------------------------------------------------------


def test_every_problem_is_collected_and_nothing_heavy_loads(
    problems: Problems, greeter: Site, without: Without
) -> None:
    without("transform", "jit")
    greeter.add(
        "drivetrain-heavy",
        {"callback": {"heavy": "heavy_stranger:INFO"}},
        heavy_stranger=(
            "from drivetrain import PluginInfo\n"
            "INFO = PluginInfo(name='heavy', kind='callback', summary='', implementation='heavy_engine:Plugin')"
        ),
        heavy_engine="raise SystemExit('it was imported')",
    )
    greeter.plugin("callback", "needy", fields='requires=("no-engine",)')
    found = problems(
        strategy="singel",
        optim="adamw_torch",
        jit_mode_eval=True,
        plugins={"greeter": {"evry": 1}, "heavy": {}, "needy": {}, "nobody": {}},
    )
    text = "\n".join(found)
    for part in (
        "Unknown strategy 'singel'",
        "'evry'",
        "needs no-engine",
        "Unknown plugin 'nobody'",
        "jit_mode_eval=",
    ):
        assert text.count(part) == 1, text
    assert len(found) == 5


def test_several_problems_are_one_error_with_a_list(plan: MakePlan, site: Site) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan(strategy="nobody", precision="nobody")
    text = str(caught.value)
    assert text.startswith("2 problems were found before the run began:\n  - Unknown strategy")
    assert "\n  - Unknown precision" in text


# -- arguments nobody reads ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "values", "sentence"),
    [
        (
            ("transform", "jit"),
            {"jit_mode_eval": True},
            "jit_mode_eval=True is not there yet: it needs the transform plugin 'jit', which is not installed.",
        ),
        (
            ("optimizer", "adamw_bnb_8bit"),
            {"optim": "adamw_bnb_8bit"},
            "optim='adamw_bnb_8bit' is not there yet: it needs the optimizer plugin 'adamw_bnb_8bit', which",
        ),
        (
            ("logger", "mlflow"),
            {"report_to": "mlflow"},
            "report_to='mlflow' is not there yet: it needs the logger plugin 'mlflow', which is not installed.",
        ),
    ],
)
def test_what_is_not_there_says_so(
    problems: Problems, without: Without, plugin: tuple[str, str], values: dict[str, Any], sentence: str
) -> None:
    without(*plugin)
    assert any(sentence in found for found in problems(**values))


def test_a_strangers_plugin_takes_over_what_is_not_there(
    plan: MakePlan, site: Site, without: Without
) -> None:
    without("transform", "jit")
    site.plugin(
        "transform",
        "jit",
        fields="place='after_prepare', arguments=('jit_mode_eval',), "
        "chosen_by=lambda args: Claim('jit_mode_eval=True') if args.jit_mode_eval else None",
        body="@hookimpl\ndef transform_model(self, run, model): return None\n",
    )
    assert [found.name for found in plan(jit_mode_eval=True).of_kind("transform")] == ["jit"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"warmup_steps": 5, "lr_scheduler_type": "constant"},
            "warmup_steps=5 has no effect under the scheduler constant.",
        ),
        (
            {"logging_steps": 5, "logging_strategy": "no"},
            "logging_steps=5 has no effect: logging_strategy is not 'steps'.",
        ),
        (
            {"ddp_bucket_cap_mb": 5},
            "ddp_bucket_cap_mb=5 has no effect here: the strategy 'ddp' is not active.",
        ),
        (
            {"hub_model_id": "someone/something"},
            "hub_model_id='someone/something' has no effect here: no hub is active.",
        ),
        ({"adam_beta1": 0.5, "optim": "sgd"}, "adam_beta1=0.5 has no effect under the optimizer sgd."),
    ],
)
def test_inert_arguments_are_said(plan: MakePlan, values: dict[str, Any], sentence: str) -> None:
    assert plan(**values).inert == [sentence]


def test_nothing_is_inert_by_default(plan: MakePlan) -> None:
    assert plan().inert == []


def test_a_run_logs_each_inert_argument_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(tmp_path, max_steps=1, lr_scheduler_type="constant", warmup_steps=5)
    with caplog.at_level(logging.INFO, "drivetrain"):
        made.train()
    assert caplog.text.count("warmup_steps=5 has no effect under the scheduler constant.") == 1


def test_a_token_is_not_shown(plan: MakePlan) -> None:
    assert "secret" not in str(plan(hub_token="secret").inert)
