"""A budget turned into a config for every layer."""

from rmm_gnn.planning.plan import Plan, PlanRow, plan

__all__ = ["Plan", "PlanRow", "plan"]
