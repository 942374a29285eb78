"""The numbers and their sources are in `rlhf/configs/reward_model.py`."""

from rlhf.configs.reward_model import get_config

__all__ = ["get_config"]
