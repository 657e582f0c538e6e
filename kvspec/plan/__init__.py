"""Spec -> Plan: the deterministic list of trials, its digest, and what it will cost."""

from kvspec.plan.compile import compile_plan
from kvspec.plan.model import Cell, Plan, Trial, canonical_json

__all__ = ["Cell", "Plan", "Trial", "canonical_json", "compile_plan"]
