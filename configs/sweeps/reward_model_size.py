"""The numbers and their sources are in `rlhf/configs/sweeps/reward_model_size.py`."""

from rlhf.configs.sweeps.reward_model_size import get_sweep

__all__ = ["get_sweep"]
