"""The numbers and their sources are in `rlhf/configs/eval.py`."""

from rlhf.configs.eval import get_config

__all__ = ["get_config"]
