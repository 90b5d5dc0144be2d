"""Policies by name: one file each, found by themselves."""

from pyrskip.policies.policy import POLICIES, Policy, PolicyConfig, Relaxed
from pyrskip.registry import import_modules

import_modules(__name__)

__all__ = ["POLICIES", "Policy", "PolicyConfig", "Relaxed"]
