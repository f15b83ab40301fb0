"""Noise put to use: a budget turned into a config for every layer, rates and learning rates that follow the noise."""

from rmm_gnn.planning.controller import NoiseController, RateChange
from rmm_gnn.planning.controller_plot import draw_changes
from rmm_gnn.planning.decision import Plan, PlanRow
from rmm_gnn.planning.noise_lr import NoiseLR
from rmm_gnn.planning.plan import plan

__all__ = ["NoiseController", "NoiseLR", "Plan", "PlanRow", "RateChange", "draw_changes", "plan"]
