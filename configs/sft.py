"""The numbers and their sources are in `rlhf/configs/sft.py`."""

from rlhf.configs.sft import get_config

__all__ = ["get_config"]
