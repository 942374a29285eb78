from rlhf.configs.pipeline import get_config as get_config
