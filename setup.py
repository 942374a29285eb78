"""Packaging: `pip install -e .` runs the embedded world on a CPU; the extras add the rest."""

import setuptools

# Lower bounds only: the oldest releases that the tests have passed with, on Python 3.11 and 3.12.
REQUIRES = [
  "absl-py>=2.3.1",
  "chex>=0.1.91",
  "filelock>=3.16",
  "flax>=0.12",
  "grain>=0.2.15",
  "jax>=0.10",
  "jinja2>=3.1.6",  # older sandboxes let templates out
  "matplotlib>=3.9",
  "ml-collections>=1.0",
  "numpy>=2.0",
  "optax>=0.2.6",
  "orbax-checkpoint>=0.12",
  "pyyaml>=6.0.2",
  "rich>=13.7",
  "safetensors>=0.5.3",
  "scipy>=1.15",
  "tensorboardX>=2.6.2.2",
  "tokenizers>=0.21",
]

# Public tasks, toxicity, agreement of raters, words beside groups, judges behind an endpoint.
EVALS = [
  "alt-profanity-check>=1.5",  # pins scikit-learn and joblib; runs in a process of its own
  "datasets>=3.0",
  "google-api-python-client>=2.150",
  "krippendorff>=0.8",
  "lm-eval>=0.4.13",
  "openai>=1.50",
  "rouge-score>=0.1.2",
  "sacrebleu>=2.4",
  "scikit-learn>=1.5",
  "textblob>=0.18",  # a tagger and a lexicon of sentiment that come with their data
]

GGUF = ["gguf>=0.17.1"]
# What `rlhf benchmark --against` runs; TRL 1.12 is the last with a PPO trainer.
PEERS = ["torch>=2.13", "transformers>=5.23", "trl==1.12.*"]
NOTEBOOK = ["ipykernel>=6.29", "jupyterlab>=4.2"]
SLURM = ["submitit>=1.5.3"]
TFDS = [  # public sets by name
  "importlib_resources>=6.4",  # tensorflow-datasets needs it, but does not require it
  "tensorflow-datasets>=4.9.9",
]

EXTRAS = {
  "evals": EVALS,
  "gguf": GGUF,
  "notebook": NOTEBOOK,
  "parity": ["peft>=0.21", "torch>=2.13", "transformers>=5.23"],
  "peers": PEERS,
  "slurm": SLURM,
  "tfds": TFDS,
  "tpu": ["jax[tpu]>=0.10"],
  "cuda12": ["jax[cuda12]>=0.10"],
  "test": [
    *EVALS,
    *GGUF,
    *SLURM,
    *TFDS,
    "ipykernel>=6.29",
    "mypy==2.4.1",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "playwright>=1.65",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
  ],
}

setuptools.setup(
  name="rlhf-jax",  # rlhf is another project on PyPI
  version="0.2.0",
  description="InstructGPT's three steps in JAX: fine-tuning, a reward model, PPO-ptx.",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["rlhf", "rlhf.*"]),
  package_data={
    "rlhf": ["py.typed"],
    "rlhf.cli.cluster": ["templates/*"],
    "rlhf.cli.common": ["*.yaml"],
    "rlhf.cli.memory": ["*.txtpb"],
    "rlhf.report": ["templates/*", "*.yaml", "*.mplstyle"],
    "rlhf.evals.preference": ["prompts/*"],
    "rlhf.data": ["public_sets.yaml"],
    "rlhf.interop": ["families.yaml"],
    "rlhf.evals.suites.tasks": ["*.toml", "*.yaml", "_chosen", "_written"],
    "rlhf.palms": ["*.yaml", "templates/*", "values/*"],
    "rlhf.tinyworld": ["*.yaml"],
  },
  entry_points={"console_scripts": ["rlhf = rlhf.cli.main:run"]},
  install_requires=REQUIRES,
  extras_require=EXTRAS,
)
