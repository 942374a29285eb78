"""The numbers and their sources are in `rlhf/configs/truth_judge.py`."""

from rlhf.configs.truth_judge import get_config

__all__ = ["get_config"]
