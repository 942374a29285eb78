"""The numbers and their sources are in `rlhf/configs/sweeps/value_init.py`."""

from rlhf.configs.sweeps.value_init import get_sweep

__all__ = ["get_sweep"]
