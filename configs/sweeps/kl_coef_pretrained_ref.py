"""The numbers and their sources are in `rlhf/configs/sweeps/kl_coef_pretrained_ref.py`."""

from rlhf.configs.sweeps.kl_coef_pretrained_ref import get_sweep

__all__ = ["get_sweep"]
