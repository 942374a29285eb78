from rlhf.configs.sweeps.model_size import get_sweep as get_sweep
