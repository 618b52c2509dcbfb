"""Hyperparameter searches that come with drivetrain: what they say of themselves."""

from __future__ import annotations

from drivetrain.plugin import PluginInfo

OPTUNA = PluginInfo(
    name="optuna",
    kind="search",
    summary="Hyperparameter search with Optuna, which ends trials that promise nothing early.",
    implementation="drivetrain_plugins.search.optuna:OptunaPlugin",
    requires=("optuna",),
    extra="optuna",
)
