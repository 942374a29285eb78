from rlhf.configs.sweeps.episodes import get_sweep as get_sweep
