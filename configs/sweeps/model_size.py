"""The numbers and their sources are in `rlhf/configs/sweeps/model_size.py`."""

from rlhf.configs.sweeps.model_size import get_sweep

__all__ = ["get_sweep"]
