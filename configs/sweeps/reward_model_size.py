from rlhf.configs.sweeps.reward_model_size import get_sweep as get_sweep
