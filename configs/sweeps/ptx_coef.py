"""The numbers and their sources are in `rlhf/configs/sweeps/ptx_coef.py`."""

from rlhf.configs.sweeps.ptx_coef import get_sweep

__all__ = ["get_sweep"]
