"""The numbers and their sources are in `rlhf/configs/sweeps/kwise_vs_pairs.py`."""

from rlhf.configs.sweeps.kwise_vs_pairs import get_sweep

__all__ = ["get_sweep"]
