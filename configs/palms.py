from rlhf.configs.palms import get_config as get_config
