"""Estimates the cost, time and disk space of a run in advance, and measures the speed of earlier runs."""

from __future__ import annotations

from saeval._run.plan.more_money import Worth, worth
from saeval._run.plan.planning import ASSUMPTIONS, Plan, StepPlan, plan
from saeval._run.plan.speed import Speed, speed

__all__ = ["ASSUMPTIONS", "Plan", "Speed", "StepPlan", "Worth", "plan", "speed", "worth"]
