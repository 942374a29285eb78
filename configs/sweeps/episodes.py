"""The numbers and their sources are in `rlhf/configs/sweeps/episodes.py`."""

from rlhf.configs.sweeps.episodes import get_sweep

__all__ = ["get_sweep"]
