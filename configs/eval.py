from rlhf.configs.eval import get_config as get_config
