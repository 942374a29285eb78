"""For `--config=configs/NAME.py`; the numbers and their sources are in `rlhf/configs/NAME.py`."""
