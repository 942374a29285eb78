"""The numbers and their sources are in `rlhf/configs/palms.py`."""

from rlhf.configs.palms import get_config

__all__ = ["get_config"]
