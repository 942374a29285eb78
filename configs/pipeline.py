"""The numbers and their sources are in `rlhf/configs/pipeline.py`."""

from rlhf.configs.pipeline import get_config

__all__ = ["get_config"]
