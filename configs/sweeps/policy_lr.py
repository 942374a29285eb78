"""The numbers and their sources are in `rlhf/configs/sweeps/policy_lr.py`."""

from rlhf.configs.sweeps.policy_lr import get_sweep

__all__ = ["get_sweep"]
