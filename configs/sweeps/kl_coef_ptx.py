"""The numbers and their sources are in `rlhf/configs/sweeps/kl_coef_ptx.py`."""

from rlhf.configs.sweeps.kl_coef_ptx import get_sweep

__all__ = ["get_sweep"]
