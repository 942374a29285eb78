from rlhf.configs.reward_model import get_config as get_config
