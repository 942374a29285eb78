from rlhf.configs.ppo import get_config as get_config
