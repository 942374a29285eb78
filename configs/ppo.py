"""The numbers and their sources are in `rlhf/configs/ppo.py`."""

from rlhf.configs.ppo import get_config

__all__ = ["get_config"]
