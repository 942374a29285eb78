"""Jobs on schedulers: what is submitted, what is refused, and a job that is ended and goes on."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import commands
import pytest
import yaml

from rlhf.cli import local, sweep
from rlhf.cli.cluster import job as job_lib
from rlhf.cli.cluster import jobset, requeue, sky, slurm, xpk
from rlhf.configs import meshes, models
from rlhf.configs import pipeline as pipeline_config
from rlhf.configs import ppo as ppo_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.com")
MICRO = ("--config.ppo.microbatch_size=64", "--config.ppo.ptx_microbatch_size=64")
JOB = (
  "ppo",
  "--config=configs/ppo.py:1.3b",
  "--workdir=/runs/ppo",
  "--config.ppo.kl_coef=0.05",
  *MICRO,
)
LARGE = (
  "ppo",
  "--config=configs/ppo.py:6b",
  "--workdir=/runs/six_b",
  "--config.mesh.fsdp=32",
  "--config.mesh.tensor=2",
  *MICRO,
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> pathlib.Path:
  """A clone of its own, committed and pushed: the tree under test may have uncommitted changes."""
  top = tmp_path_factory.mktemp("clone") / "rlhf"
  for package in ("configs", "launch", "rlhf"):
    shutil.copytree(
      commands.ROOT / package, top / package, ignore=shutil.ignore_patterns("__pycache__")
    )
  (top / ".gitignore").write_text("__pycache__/\n/runs/\n")
  git(top, "init", "--quiet", "--initial-branch=main")
  git(top, "add", "--all")
  git(top, "commit", "--quiet", "--message=all")
  git(top, "clone", "--quiet", "--bare", ".", str(top.parent / "origin.git"))
  git(top, "remote", "add", "origin", str(top.parent / "origin.git"))
  git(top, "fetch", "--quiet")
  return top


def git(top, *words) -> str:
  return subprocess.run(
    [*GIT, "-C", str(top), *words], check=True, capture_output=True, text=True
  ).stdout.strip()


@pytest.fixture
def here(repository, monkeypatch) -> pathlib.Path:
  """The launchers belong to that clone, and are started from its top."""
  monkeypatch.setattr(job_lib, "ROOT", repository)
  monkeypatch.chdir(repository)
  return repository


@pytest.fixture
def printed(here, capsys):
  """printed(slurm, "--topology=...", job): what a dry run prints."""

  def run(launcher, *flags, job=JOB):
    launcher.main(["launcher", *flags, "--dry_run", "--", *job])
    return capsys.readouterr().out

  return run


@pytest.fixture
def refused(here, capsys):
  """refused(slurm, "--topology=...", job=...): the one sentence."""

  def run(launcher, *flags, job=JOB):
    with pytest.raises(SystemExit) as stopped:
      launcher.main(["launcher", *flags, "--dry_run", *(["--", *job] if job else [])])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.removeprefix("error: ").strip()

  return run


XPK = ("--topology=v5p:4x4x4", "--cluster=pod", "--image=example/rlhf:1", "--storage=runs")
JOBSET = ("--topology=v5p:4x4x4", "--image=example/rlhf:1", "--volume=gs://bucket:/runs")
SKY = ("--topology=h100:2x8", "--volume=gs://bucket:/runs")


# ----------------------------------------------------------------------------- SLURM


def sbatch_options(script: str) -> dict[str, str]:
  lines = re.findall(r"^#SBATCH --([-\w]+)=?(.*)$", script, re.MULTILINE)
  return {name: " ".join(shlex.split(value)) for name, value in lines}


def test_slurm_1_3b_on_eight_h100(printed, here, tmp_path):
  workdir = tmp_path / "ppo"
  text = printed(
    slurm,
    "--topology=h100:1x8",
    "--partition=gpu",
    "--account=rl",
    "--time=2-00:00:00",
    "--save_seconds=300",
    "--sbatch=mem=0",
    job=(*JOB[:2], f"--workdir={workdir}", *JOB[3:]),
  )
  head, folder = git(here, "rev-parse", "HEAD"), f"{workdir}/submitit"
  assert sbatch_options(text) == {
    "account": "rl",
    "partition": "gpu",
    "comment": f"rlhf {head}",
    "job-name": "ppo-ppo",
    "nodes": "1",
    "ntasks-per-node": "1",
    "gpus-per-node": "8",
    "time": "2880",
    "mem": "0",
    "signal": "USR2@300",
    "requeue": "",
    "open-mode": "append",
    "wckey": "submitit",
    "output": f"{folder}/%j_0_log.out",
  }
  code = f"{folder}/code-{head[:12]}"
  assert f"export PYTHONPATH={code}\nexport PYTHONSAFEPATH=1\n" in text
  assert text.rstrip().endswith(
    f"srun --unbuffered --output {folder}/%j_%t_log.out {sys.executable} -u -m "
    f"submitit.core._submit {folder}"
  )
  # One host: nobody to join.
  assert (
    f"# on each node: {sys.executable} -m rlhf train ppo "
    f"--config={code}/configs/ppo.py:1.3b --workdir={workdir} --config.ppo.kl_coef=0.05 "
    f"{' '.join(MICRO)}\n"
  ) in text
  assert not workdir.exists()


def test_a_job_may_take_its_shape_from_a_published_model(printed):
  """Its heads are checked where the file is read."""
  for job in (
    (
      "sft",
      "--config=configs/sft.py:imported",
      "--workdir=/w",
      "--config.init_from=hf:/models/llama",
    ),
    (
      "pipeline",
      "--config=configs/pipeline.py:smollm2",
      "--workdir=/w",
      "--config.base.source=hf:/models/llama",
    ),
  ):
    assert "hf:/models/llama" in printed(slurm, "--topology=cpu:1", "--executor=local", job=job)


def test_slurm_on_many_nodes_in_a_container(printed, here, tmp_path):
  text = printed(
    slurm,
    "--topology=h100:4x8",
    "--container=image.sqsh",
    "--cpus_per_task=96",
    "--container_mounts=/data:/data",
    job=("sft", "--config", "configs/sft.py:1.3b", f"--workdir={tmp_path}"),
  )
  options = sbatch_options(text)
  assert (options["nodes"], options["gpus-per-node"], options["cpus-per-task"]) == ("4", "8", "96")
  assert (
    f"--cpus-per-task=96 --container-image=image.sqsh --container-mounts={here}:{here},"
    f"{tmp_path}:{tmp_path},/data:/data --container-workdir={here} python -u -m"
  ) in text
  assert re.search(
    r"# on each node: python -m rlhf train sft --config \S+/code-\w+/configs/"
    rf"sft.py:1.3b --workdir={tmp_path} --coordinator_address=FIRST_NODE:PORT "
    r"--num_processes=4 --process_id=SLURM_PROCID\n",
    text,
  )


def test_a_part_of_each_node(printed, tmp_path):
  text = printed(slurm, "--topology=h100:2x4", job=(*JOB[:2], f"--workdir={tmp_path}"))
  options = sbatch_options(text)
  assert (options["nodes"], options["gpus-per-node"]) == ("2", "4")


# ----------------------------------------------------------------------------- xpk


def test_xpk_6b_on_a_v5p_slice(printed, here):
  text = printed(xpk, *XPK, "--zone=us-east5-a", "--max_restarts=7", job=LARGE)
  head, origin = git(here, "rev-parse", "HEAD"), git(here, "remote", "get-url", "origin")
  comment, command = text.strip().split("\n")
  assert comment == f"# commit {head}"
  assert shlex.split(command) == [
    "xpk",
    "workload",
    "create",
    "--workload=ppo-six-b",
    "--cluster=pod",
    "--tpu-type=v5p-4x4x4",
    "--docker-image=example/rlhf:1",
    "--storage=runs",
    "--zone=us-east5-a",
    "--max-restarts=7",
    "--restart-on-exit-codes=1",
    "--termination-grace-period-seconds=600",
    f"--command=git clone --quiet {origin} /tmp/rlhf && cd /tmp/rlhf && git checkout --quiet "
    f"--detach {head} && exec python -m rlhf train ppo --config=configs/ppo.py:6b "
    f"--workdir=/runs/six_b --config.mesh.fsdp=32 --config.mesh.tensor=2 {' '.join(MICRO)} "
    "--cluster=gketpu",
  ]


def test_xpk_on_h100_nodes(printed):
  command = shlex.split(printed(xpk, "--topology=h100:2x8", *XPK[1:]))
  assert {"--device-type=h100-80gb-8", "--num-nodes=2"} < set(command)
  place = (
    " --coordinator_address=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT "
    "--num_processes={} --process_id=$NODE_RANK"
  )
  assert command[-1].endswith(place.format(2))
  # xpk sets the address for one host too, and jax would miss the rest.
  command = shlex.split(printed(xpk, "--topology=h100:1x8", *XPK[1:]))
  assert command[-1].endswith(place.format(1))


# ----------------------------------------------------------------------------- JobSet


def test_jobset_on_a_v5p_slice(printed, here):
  data = yaml.safe_load(printed(jobset, *JOBSET, "--service_account=trainer", job=LARGE))
  head = git(here, "rev-parse", "HEAD")
  assert (data["apiVersion"], data["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert data["metadata"] == {
    "name": "ppo-six-b",
    "namespace": "default",
    "annotations": {
      "rlhf/commit": head,
      "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
    },
  }
  assert data["spec"]["network"] == {"enableDNSHostnames": True}
  assert data["spec"]["failurePolicy"] == {
    "maxRestarts": 100,
    "rules": [
      {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ],
  }
  (workers,) = data["spec"]["replicatedJobs"]
  assert (workers["name"], workers["replicas"]) == ("workers", 1)
  job = workers["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 16
  assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
  assert job["podFailurePolicy"]["rules"] == [
    {"action": "FailJob", "onExitCodes": {"containerName": "rlhf", "operator": "In", "values": [2]}}
  ]
  assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "4x4x4",
  }
  assert (pod["restartPolicy"], pod["serviceAccountName"]) == ("Never", "trainer")
  assert pod["terminationGracePeriodSeconds"] == 600
  assert pod["tolerations"] == [
    {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}
  ]
  assert pod["volumes"] == [
    {
      "name": "volume-0",
      "csi": {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {"bucketName": "bucket", "mountOptions": "implicit-dirs"},
      },
    }
  ]
  (container,) = pod["containers"]
  assert container["image"] == "example/rlhf:1"
  assert container["resources"] == {"limits": {"google.com/tpu": 4}}
  assert container["volumeMounts"] == [{"name": "volume-0", "mountPath": "/runs"}]
  shell, flag, line = container["command"]
  assert (shell, flag) == ("bash", "-c")
  assert f"git checkout --quiet --detach {head} && exec python -m rlhf train ppo " in line
  assert line.endswith(" ".join((*LARGE[3:], "--cluster=gketpu")))


def test_jobset_on_h100_nodes(printed):
  data = yaml.safe_load(printed(jobset, "--topology=h100:2x8", "--image=i", "--volume=claim:/runs"))
  assert data["metadata"]["annotations"].keys() == {"rlhf/commit"}
  job = data["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 2
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
    "node.kubernetes.io/instance-type": "a3-highgpu-8g",
  }
  assert pod["volumes"] == [
    {"name": "volume-0", "persistentVolumeClaim": {"claimName": "claim"}},
    {"name": "shm", "emptyDir": {"medium": "Memory"}},
  ]
  assert job["template"]["metadata"]["annotations"] == {}
  (container,) = pod["containers"]
  assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
  # A JobSet calls its pods NAME-workers-0-INDEX, below a service called NAME.
  assert container["command"][2].endswith(
    " --coordinator_address=ppo-ppo-workers-0-0.ppo-ppo:8476 --num_processes=2 "
    "--process_id=$JOB_COMPLETION_INDEX"
  )


@pytest.mark.parametrize(
  "topology, hosts, chips",
  [("v5e:2x4", 1, 8), ("v5e:4x4", 4, 4), ("v6e:8x8", 16, 4), ("v5p:2x2x1", 1, 4)],
)
def test_hosts_and_chips_of_slices(printed, topology, hosts, chips):
  data = yaml.safe_load(printed(jobset, f"--topology={topology}", *JOBSET[1:]))
  job = data["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  assert (job["completions"], container["resources"]["limits"]) == (
    hosts,
    {"google.com/tpu": chips},
  )
  assert ("--cluster=gketpu" in container["command"][2]) == (hosts > 1)


def test_a_manifest_is_written(here, tmp_path, capsys):
  file = tmp_path / "jobs" / "ppo.yaml"
  jobset.main(["jobset", *JOBSET, f"--output={file}", "--", *JOB])
  assert yaml.safe_load(file.read_text())["metadata"]["name"] == "ppo-ppo"
  assert f"kubectl apply -f {file}" in capsys.readouterr().out


def test_shell_words_stay_words(printed, tmp_path):
  """The line that a container's shell gets is the command line that was given."""
  job = (*JOB, "--config.prompts.prompt_suffix=\n\n'A': $HOME", "--name=x")[:-1]
  data = yaml.safe_load(printed(jobset, *JOBSET, job=job))
  pod = data["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  program = pod["containers"][0]["command"][2].partition("exec ")[2]
  assert shlex.split(program)[4:] == [*job, "--cluster=gketpu"]


# ----------------------------------------------------------------------------- SkyPilot


def test_sky_on_h100_nodes(printed, here):
  text = printed(sky, *SKY, "--infra=gcp", "--spot", "--max_restarts=3")
  assert text.startswith("# sky jobs launch --yes --name=ppo-ppo FILE\n")
  origin = git(here, "remote", "get-url", "origin")
  assert yaml.safe_load(text) == {
    "name": "ppo-ppo",
    "num_nodes": 2,
    "workdir": {"url": origin, "ref": git(here, "rev-parse", "HEAD")},
    "resources": {
      "accelerators": "H100:8",
      "infra": "gcp",
      "use_spot": True,
      "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [143]},
    },
    "file_mounts": {"/runs": {"source": "gs://bucket", "mode": "MOUNT"}},
    "setup": (
      "set -e\npython3 -m pip install --quiet uv\n"
      "python3 -m uv venv --python 3.12 ~/rlhf\n. ~/rlhf/bin/activate\n"
      "python3 -m uv pip install --quiet -e '.[cuda12]'\n"
    ),
    "run": ". ~/rlhf/bin/activate\nexec python -m rlhf train "
    + " ".join(JOB)
    + (
      ' --coordinator_address="$(echo "$SKYPILOT_NODE_IPS" | head -n1)":8476 --num_processes=2 '
      "--process_id=$SKYPILOT_NODE_RANK\n"
    ),
  }


def test_sky_finds_the_first_address(printed):
  run = yaml.safe_load(printed(sky, *SKY))["run"]
  words = run.strip().rpartition(f"{JOB[-1]} ")[2]
  shown = subprocess.run(
    ["bash", "-c", f"printf '%s\\n' {words}"],
    capture_output=True,
    text=True,
    env={
      "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
      "SKYPILOT_NODE_RANK": "1",
      "PATH": os.environ["PATH"],
    },
    check=True,
  ).stdout.split("\n")
  assert shown == ["--coordinator_address=10.0.0.1:8476", "--num_processes=2", "--process_id=1", ""]


@pytest.mark.parametrize(
  "topology, accelerators",
  [("v5p:4x4x4", "tpu-v5p-128"), ("v5e:4x4", "tpu-v5litepod-16"), ("v6e:4x8", "tpu-v6e-32")],
)
def test_sky_on_slices(printed, topology, accelerators):
  data = yaml.safe_load(printed(sky, f"--topology={topology}", SKY[1]))
  assert (data["resources"]["accelerators"], data["num_nodes"]) == (accelerators, 1)
  assert ("accelerator_args" in data["resources"]) == topology.startswith("v5e")
  assert data["run"].endswith(" --cluster=gcetpu\n") and "'.[tpu]'" in data["setup"]


def test_the_pipeline_is_a_job_too(printed):
  text = printed(
    jobset,
    "--topology=h100:1x8",
    *JOBSET[1:],
    job=("pipeline", "--config=configs/pipeline.py:tiny", "--workdir=/runs/tiny"),
  )
  assert (
    "exec python -m rlhf pipeline --config=configs/pipeline.py:tiny --workdir=/runs/tiny\n"
  ) in text


# ----------------------------------------------------------------------------- bad input


def test_no_jax_before_the_job(repository):
  """Dry runs and refusals alike; 8 simulated devices of this process are none of theirs."""
  program = """if True:
    import sys
    from rlhf.cli.cluster import jobset, sky, slurm, xpk
    for launcher, flags in ((slurm, ["--topology=h100:1x8"]), (xpk, sys.argv[1].split()),
                            (jobset, sys.argv[2].split()), (sky, sys.argv[3].split())):
      launcher.main(["launcher", *flags, "--dry_run", "--", *sys.argv[4:]])
      try:
        launcher.main(["launcher", *flags, "--", *sys.argv[4:], "--config.mesh.tensor=3"])
      except SystemExit as stopped:
        assert stopped.code == 2
      else:
        raise AssertionError("it was submitted")
    assert not {"jax", "jaxlib", "flax", "tensorflow"} & set(sys.modules)
    print("without jax")"""
  done = subprocess.run(
    [sys.executable, "-c", program, *(" ".join(flags) for flags in (XPK, JOBSET, SKY)), *JOB],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
    env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
  )
  assert done.stdout.endswith("without jax\n"), done.stderr
  assert done.stderr.count("error: ") == 4


@pytest.mark.parametrize(
  "flags, job, sentence",
  [
    ("--topology=h200:1x8", JOB, "topology 'h200:1x8' has no known kind"),
    ("--topology=v5p:4x4x4", JOB, "--topology=v5p:4x4x4: SLURM has no v5p; choose from h100, cpu"),
    (
      "--topology=h100:1x8",
      (*JOB, "--config.mesh.tensor=3"),
      "h100:1x8: mesh data=-1 fsdp=1 tensor=3 does not use exactly the 8 devices there are",
    ),
    (
      "--topology=h100:1x8",
      (*JOB, "--config.ppo.batch_size=60"),
      "h100:1x8: ppo.batch_size 60 does not divide over data*fsdp = 8 devices; use a multiple of 8",
    ),
    (
      "--topology=h100:16x8",
      JOB,
      "h100:16x8: ppo.minibatch_size 64 does not divide over data*fsdp = 128 devices",
    ),
    (
      "--topology=h100:4x8",
      (*JOB, "--config.mesh.tensor=32"),
      "h100:4x8: model.num_heads 16 does not divide over mesh.tensor 32; use a divisor of 16",
    ),
    (
      "--topology=h100:2x8",
      ("pipeline", "--config=configs/pipeline.py:tiny", "--workdir=/w"),
      "stage base: h100:2x8: sft.batch_size 8 does not divide over data*fsdp = 16",
    ),
    (
      "--topology=h100:1x8",
      ("pipeline", "--config=configs/palms.py:tiny", "--workdir=/w"),
      "PALMS on TinyWorld runs in one process on one machine",
    ),
    (
      "--topology=h100:4x8",
      ("truth_judge", "--config=configs/truth_judge.py:1.3b", "--workdir=/w"),
      "h100:4x8: sft.batch_size 16 does not divide over data*fsdp = 32",
    ),
    (
      "--topology=h100:1x8",
      (*JOB, "--config.ppo.kl_coeff=1"),
      "--config.ppo.kl_coeff: config.ppo has no field 'kl_coeff'; did you mean 'kl_coef'?",
    ),
    ("--topology=h100:1x8", (*JOB, "--config.ppo.batch_size=many"), "invalid literal for int()"),
    ("--topology=h100:1x8", (*JOB, "--verbose"), "verbose"),
    ("--topology=h100:1x8", (), "there is no job; write -- and the arguments of `rlhf train`"),
    (
      "--topology=h100:1x8",
      ("dpo", *JOB[1:]),
      "argument algorithm: invalid choice: 'dpo' (choose from",
    ),
    (
      "--topology=h100:1x8",
      ("sft", *JOB[1:]),
      "configs/ppo.py is a ppo config, not sft; use `rlhf train ppo`",
    ),
    ("--topology=h100:1x8", JOB[:2], "required: --workdir"),
    ("--topology=h100:1x8 --name=My_Job", JOB, "--name=My_Job must be at most 40 lower case"),
    ("--topology=h100:1x8 --time=soon", JOB, "argument --time: 'soon' is no time"),
    ("--topology=h100:1x8 --time=5", JOB, "--time is 5 minutes, and --save_seconds=600 of them"),
    ("--topology=h100:1x8 --sbatch=mem", JOB, "--sbatch=mem is not NAME=VALUE"),
    ("--topology=h100:2x8 --executor=local", JOB, "--executor=local has one host"),
  ],
)
def test_slurm_refuses(refused, flags, job, sentence):
  assert sentence in refused(slurm, *flags.split(), job=job)


@pytest.mark.parametrize(
  "flag",
  [
    "--num_processes=2",
    "--process_id=0",
    "--coordinator_address=here:1",
    "--cluster=auto",
    "--num_processes",
  ],
)
def test_every_launcher_refuses_a_place_of_ones_own(refused, flag, capsys):
  sentence = (
    f"{flag.partition('=')[0]} is given after --, but the launcher sets it for each process; "
    "leave it out"
  )
  job = (*JOB, flag, *(["2"] if "=" not in flag else []))
  for launcher, flags in (
    (slurm, ("--topology=h100:1x8",)),
    (xpk, XPK),
    (jobset, JOBSET),
    (sky, SKY),
  ):
    assert refused(launcher, *flags, job=job) == sentence
  with pytest.raises(SystemExit) as stopped:
    local.main(["local", "--", *job])
  assert stopped.value.code == 2 and capsys.readouterr().err == f"error: {sentence}\n"


def test_a_local_job_needs_a_process(capsys):
  with pytest.raises(SystemExit) as stopped:
    local.main(["local", "--num_processes=0", "--", *JOB])
  assert stopped.value.code == 2
  assert "argument --num_processes: 0 is below 1; use 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
  "launcher, flags, job, sentence",
  [
    (xpk, ("--topology=cpu:8", *XPK[1:]), JOB, "--topology=cpu:8: xpk has no cpu"),
    (xpk, ("--topology=h100:1x4", *XPK[1:]), JOB, "xpk has H100 nodes of 8 GPUs"),
    (xpk, XPK[:3], JOB, "--workdir=/runs/ppo would be lost with its pod"),
    (
      xpk,
      XPK,
      (*JOB[:2], "--workdir=runs/ppo", *MICRO),
      "--workdir=runs/ppo would be lost with its pod",
    ),
    (xpk, XPK, (*JOB, "--config.prompts.prompt_suffix=\n"), "a quote, a backslash or a line break"),
    (xpk, XPK[:1], JOB, "the following arguments are required: --cluster, --image"),
    (jobset, ("--topology=cpu:8", *JOBSET[1:]), JOB, "--topology=cpu:8: GKE has no cpu"),
    (
      jobset,
      ("--topology=h100:1x5", *JOBSET[1:]),
      JOB[:3]
      + (
        "--config.ppo.batch_size=320",
        "--config.ppo.minibatch_size=320",
        "--config.ppo.microbatch_size=320",
        "--config.ppo.ptx_microbatch_size=320",
      ),
      "GKE has machines of 1, 2, 4 or 8 H100",
    ),
    (jobset, JOBSET[:2], JOB, "--workdir=/runs/ppo would be lost with its machine"),
    (jobset, (*JOBSET[:2], "--volume=gs://bucket:/other"), JOB, "would be lost with its machine"),
    (jobset, (*JOBSET[:2], "--volume=bucket"), JOB, "--volume=bucket is not SOURCE:/PATH"),
    (
      jobset,
      (*JOBSET, "--repository=https://me:secret@example.org/x"),
      JOB,
      "holds a user name or password",
    ),
    (
      jobset,
      (*JOBSET, "--repository=ssh://me:secret@example.org/x"),
      JOB,
      "holds a user name or password",
    ),
    (sky, ("--topology=cpu:8", SKY[1]), JOB, "--topology=cpu:8: SkyPilot has no cpu"),
    (sky, SKY[:1], JOB, "--workdir=/runs/ppo would be lost with its machine"),
    (sky, (SKY[0], "--volume=bucket:/runs"), JOB, "--volume=bucket:/runs is not SOURCE:/PATH"),
  ],
)
def test_clouds_refuse(refused, launcher, flags, job, sentence):
  assert sentence in refused(launcher, *flags, job=job)


def test_a_workdir_of_another_config(refused, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"seed": 1}))
  sentence = refused(slurm, "--topology=h100:1x8", job=(*JOB[:2], f"--workdir={tmp_path}"))
  assert f"{tmp_path} was written by an earlier version of rlhf" in sentence


@pytest.fixture
def only_git(monkeypatch, tmp_path):
  """No program of a scheduler can be found."""
  programs = tmp_path / "programs"
  programs.mkdir()
  (programs / "git").symlink_to(shutil.which("git"))
  monkeypatch.setenv("PATH", str(programs))


def test_a_missing_engine(here, capsys, monkeypatch, only_git):
  monkeypatch.setitem(sys.modules, "submitit", None)
  for launcher, flags, sentence in (
    (
      slurm,
      ("--topology=h100:1x8",),
      "SLURM needs the package submitit; pip install 'rlhf-jax[slurm]'",
    ),
    (xpk, XPK, "there is no program 'xpk'; install xpk with"),
    (jobset, JOBSET, "there is no program 'kubectl'"),
    (sky, SKY, "there is no program 'sky'"),
  ):
    with pytest.raises(SystemExit) as stopped:
      launcher.main(["launcher", *flags, "--", *JOB])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_slurm_needs_a_cluster(here, capsys, only_git, tmp_path):
  with pytest.raises(SystemExit):
    slurm.main(["slurm", "--topology=h100:1x8", "--", *JOB[:2], f"--workdir={tmp_path / 'new'}"])
  assert "there is no srun here" in capsys.readouterr().err
  assert not (tmp_path / "new").exists()


# ----------------------------------------------------------------------------- the commit


def test_a_job_runs_what_is_committed(here, refused, capsys):
  new = here / "notes.txt"
  try:
    new.write_text("x")
    assert "1 files are not committed (notes.txt is the first)" in refused(jobset, *JOBSET)
    jobset.main(["jobset", *JOBSET, "--allow_dirty", "--dry_run", "--", *JOB])
    assert git(here, "rev-parse", "HEAD") in capsys.readouterr().out
  finally:
    new.unlink()
  config = here / "configs" / "mine.py"
  try:
    config.write_text((here / "configs" / "ppo.py").read_text())
    job = ("ppo", "--config=configs/mine.py", *JOB[2:])
    assert "the configs have changes" in refused(jobset, *JOBSET, "--allow_dirty", job=job)
  finally:
    config.unlink()


def test_a_config_of_elsewhere_stays_here(refused, here, tmp_path, printed):
  config = tmp_path / "mine.py"
  config.write_text((here / "configs" / "ppo.py").read_text())
  job = ("ppo", f"--config={config}:1.3b", *JOB[2:])
  assert f"--config={config} is not in the repository" in refused(jobset, *JOBSET, job=job)
  job = ("ppo", f"--config={config}:1.3b", f"--workdir={tmp_path / 'run'}")
  assert f" --config={config}:1.3b " in printed(slurm, "--topology=h100:1x8", job=job)


def test_a_config_is_named_from_the_top_of_the_repository(here, printed, monkeypatch):
  monkeypatch.chdir(here / "configs")
  text = printed(jobset, *JOBSET, job=("ppo", "--config", "ppo.py:1.3b", *JOB[2:]))
  assert "--config configs/ppo.py:1.3b" in text


def test_the_commit_must_be_pushed(here, refused, printed):
  git(here, "commit", "--quiet", "--allow-empty", "--message=new")
  try:
    head = git(here, "rev-parse", "HEAD")
    assert refused(jobset, *JOBSET) == (
      f"commit {head[:12]} is on no remote branch; push it, so that the job can fetch it"
    )
    assert "https://example.org/fork" in printed(
      jobset, *JOBSET, "--repository=https://example.org/fork"
    )
  finally:
    git(here, "reset", "--quiet", "--hard", "HEAD~1")


def test_outside_a_repository(refused, monkeypatch, tmp_path):
  monkeypatch.setattr(job_lib, "ROOT", tmp_path)
  """As where rlhf was installed from a wheel; git's own message would name a folder of Python."""
  assert refused(jobset, *JOBSET) == (
    f"{tmp_path} is not the top of a git repository, and a job runs a commit; start it from a "
    "clone of the repository, installed with pip install -e ."
  )


# ----------------------------------------------------------------------------- topologies


def test_check_config_accepts_what_fits():
  meshes.check_config(ppo_config.get_config("1.3b"), meshes.parse_topology("h100:1x8"))
  meshes.check_config(pipeline_config.get_config("tiny"), meshes.parse_topology("cpu:8"))
  config = ppo_config.get_config("175b")
  config.mesh.fsdp, config.mesh.tensor = 64, 16
  config.ppo.microbatch_size = config.ppo.ptx_microbatch_size = 64
  meshes.check_config(config, meshes.parse_topology("v5p:8x8x16"))
  assert models.GPT3["175b"][2] % 16 == 0


def test_hosts():
  hosts = {"h100:2x4": 2, "h100:16x8": 16, "v5p:4x4x4": 16, "v5e:2x4": 1, "v6e:4x4": 4, "cpu:8": 1}
  for name, num_hosts in hosts.items():
    assert meshes.parse_topology(name).num_hosts == num_hosts, name


# ----------------------------------------------------------------------------- ended and requeued

# The first start does what its name says and the second, which finds the mark, succeeds.
STARTS = """if True:
  import os, pathlib, signal, sys, time
  how, mark = sys.argv[1], pathlib.Path(sys.argv[2])
  mark.write_text(mark.read_text() + "start\\n" if mark.exists() else "start\\n")
  if mark.read_text().count("start") > 1 or how == "succeeds":
    sys.exit(0)
  if how == "is ended alone":
    sys.exit(143)
  if how == "fails":
    sys.exit(3)
  def save(*_):
    mark.write_text(mark.read_text() + "saved\\n")
    sys.exit(143)
  signal.signal(signal.SIGTERM, save)
  number = signal.SIGUSR2 if how == "is asked to save" else signal.SIGTERM
  os.kill(os.getpid(), signal.SIGUSR2)  # a scheduler signals every process of a job
  os.kill(os.getppid(), number)
  time.sleep(60)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
  """How it ended: (the marks that the starts left, submitit's exception or None)."""
  import submitit

  folder = tmp_path_factory.mktemp("submitit")
  jobs = {}
  for restarts, how in (
    (1, "succeeds"),
    (1, "is ended alone"),
    (1, "is asked to save"),
    (1, "is cancelled"),
    (1, "fails"),
    (0, "is asked to save"),
  ):
    name = f"{how}, {restarts}"
    mark = folder / f"{name}.txt"
    executor = submitit.LocalExecutor(folder / name.replace(" ", "-"))
    executor.update_parameters(timeout_min=60, signal_delay_s=30)
    command = [sys.executable, "-c", STARTS, how, str(mark)]
    jobs[name] = (
      mark,
      executor.submit(
        requeue.Requeued(command, restarts=restarts, patience=1.0, record=folder / f"{name}.json")
      ),
    )
  return {
    name: (mark.read_text().split(), job.exception(), mark.with_suffix(".json").exists())
    for name, (mark, job) in jobs.items()
    if job.wait() is None
  }


def test_a_command_that_succeeds_is_run_once(ended):
  assert ended["succeeds, 1"] == (["start"], None, False)


def test_a_command_that_ended_with_143_is_run_again(ended):
  assert ended["is ended alone, 1"] == (["start", "start"], None, False)


def test_a_command_is_asked_to_save_and_run_again(ended):
  assert ended["is asked to save, 1"] == (["start", "saved", "start"], None, False)


def test_restarts_are_counted_however_early_the_job_is_asked_to_save(ended):
  """submitit counts those of the last fifth of the time limit alone."""
  marks, failure, recorded = ended["is asked to save, 0"]
  assert marks == ["start", "saved"] and recorded
  assert "no restart is left (--max_restarts); submit the same command to resume" in str(failure)


def test_a_cancelled_command_saves_and_does_not_come_back(ended):
  marks, failure, recorded = ended["is cancelled, 1"]
  assert marks == ["start", "saved"] and not recorded
  assert "submit the same command to resume" in str(failure)


# Each of two tasks ends with 143 at the first start.
PLACES = """if True:
  import json, pathlib, sys
  process_id = sys.argv[-1].partition("=")[2]
  mark = pathlib.Path(sys.argv[1]) / f"{process_id}.jsonl"
  with mark.open("a") as file:
    print(json.dumps(sys.argv[2:]), file=file)
  sys.exit(143 if len(mark.read_text().splitlines()) == 1 else 0)
"""


def test_every_task_knows_its_place(tmp_path):
  import submitit

  executor = submitit.LocalExecutor(tmp_path / "submitit")
  executor.update_parameters(timeout_min=60, signal_delay_s=30, tasks_per_node=2)
  command = [sys.executable, "-c", PLACES, str(tmp_path), "--flag"]
  job = executor.submit(requeue.Requeued(command, restarts=1, patience=1.0))
  assert job.exception() is None
  address = f"{socket.gethostname()}:{61440 + int(job.job_id) % 4096}"
  for i in range(2):
    assert commands.read_jsonl(tmp_path / f"{i}.jsonl") == 2 * [
      ["--flag", f"--coordinator_address={address}", "--num_processes=2", f"--process_id={i}"]
    ]


def test_a_command_that_fails_is_not_run_again(ended):
  marks, failure, recorded = ended["fails, 1"]
  assert marks == ["start"] and "ended with status 3" in str(failure) and recorded


# ----------------------------------------------------------------------------- a sweep on SLURM


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A SLURM that takes jobs and runs none; what it is given and says lies in the directory."""
  programs = tmp_path / "slurm"
  programs.mkdir()
  (programs / "srun").touch()
  (programs / "sbatch").write_text(
    f"#!/bin/sh\ncd {programs}\nn=$(ls | grep -c 'script$')\ncp $1 $n.script\n"
    "echo Submitted batch job 10$n\n"
  )
  (programs / "squeue").write_text(f"#!/bin/sh\ncat {programs}/queued\n")
  for program in programs.iterdir():
    program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
  return programs


def scripts(cluster) -> list[dict[str, str]]:
  found = sorted(cluster.glob("*.script"), key=lambda path: int(path.stem))
  return [sbatch_options(path.read_text()) for path in found]


def test_a_sweep_on_slurm_runs_the_commit_and_is_submitted_once(
  here, cluster, tmp_path, capsys, monkeypatch
):
  from submitit.core import utils

  workdir = tmp_path / "sweep"
  command = [
    "sweep",
    "configs/sweeps/ptx_coef.py:test",
    "--slurm",
    f"--workdir={workdir}",
    "--partition=gpu",
    "--time=8:00:00",
    "--save_seconds=300",
    "--max_restarts=7",
  ]
  assert sweep.main(command) == 0
  head = git(here, "rev-parse", "HEAD")
  folder, code = workdir / "slurm", workdir / "slurm" / f"code-{head[:12]}"
  first, second = scripts(cluster)
  assert "dependency" not in first and second["dependency"] == "afterany:100"
  assert {
    "partition": "gpu",
    "time": "480",
    "signal": "USR2@300",
    "requeue": "",
    "nodes": "1",
    "ntasks-per-node": "1",
    "cpus-per-task": "8",
    "comment": f"rlhf {head}",
  }.items() <= first.items()
  text = (cluster / "0.script").read_text()
  assert f"export PYTHONPATH={code}\nexport PYTHONSAFEPATH=1\n" in text
  assert git(code, "rev-parse", "HEAD") == head
  requeued = utils.DelayedSubmission.load(folder / "100_submitted.pkl").function
  name = "ptx_coef=0.0,seed=0"
  assert requeued.command[1:6] == [
    "-m",
    "rlhf",
    "pipeline",
    f"--config={code}/configs/pipeline.py:test",
    f"--workdir={workdir}/trials/{name}",
  ]
  assert (requeued.restarts, requeued.log, requeued.record) == (
    7,
    workdir / "logs" / f"{name}.txt",
    workdir / "logs" / f"{name}.json",
  )

  # Again: one is queued still; then squeue is silent, and nothing is submitted twice.
  monkeypatch.setattr(sweep, "run_checks", lambda *_: None)
  (cluster / "queued").write_text("7\n100\n")
  assert sweep.main(command) == 0
  assert f"{name}: job 100 is queued; not submitted again" in capsys.readouterr().out
  assert [options.get("dependency") for options in scripts(cluster)[2:]] == ["afterany:100"]
  (cluster / "queued").unlink()
  for program in ("exit with 1", "missing"):
    if program == "missing":
      (cluster / "squeue").unlink()
    with pytest.raises(SystemExit) as stopped:
      sweep.main(command)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1, error
    assert "cannot say which of 2 jobs that were submitted before are still queued" in error
  assert len(scripts(cluster)) == 3


def test_a_sweep_is_checked_before_it_is_submitted(here, cluster, tmp_path, capfd):
  """By the algorithm, as on the GPUs of a trial's node, which the login node need not have."""
  spec, workdir = tmp_path / "sizes.py", tmp_path / "runs"
  spec.write_text(
    "from rlhf.configs import sweeps\n"
    "def get_sweep():\n"
    "  return sweeps.ppo_sweep('test', title='Sizes', x='ppo.minibatch_size',\n"
    "      trials=sweeps.grid('ppo.minibatch_size', [64, 65]), x_label='size')\n"
  )
  for gpus, sentence in (
    (4, "trial 2 of 2 (minibatch_size=65,seed=0): ppo.batch_size 512 does"),
    (2, "mesh data=1 fsdp=4 tensor=1 does not use exactly the 2 devices"),
  ):
    with pytest.raises(SystemExit) as stopped:
      sweep.main(
        [
          "sweep",
          str(spec),
          "--slurm",
          f"--workdir={workdir}",
          f"--gpus={gpus}",
          "--config.mesh.data=1",
          "--config.mesh.fsdp=4",
        ]
      )
    assert stopped.value.code == 2 and sentence in capfd.readouterr().err
  assert not scripts(cluster) and not workdir.exists()


def test_a_sweep_of_changed_code_is_refused(here, cluster, tmp_path, capsys, monkeypatch):
  command = ["sweep", "configs/sweeps/ptx_coef.py:test", "--slurm", f"--workdir={tmp_path / 'w'}"]
  monkeypatch.setattr(sweep, "run_checks", lambda *_: None)
  new = here / "notes.txt"
  try:
    new.write_text("x")
    with pytest.raises(SystemExit):
      sweep.main(command)
    assert "1 files are not committed (notes.txt is the first)" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert sweep.main([*command, "--allow_dirty"]) == 0
  finally:
    new.unlink()


def test_a_sweep_needs_a_slurm_that_takes_it(here, only_git, tmp_path, capsys, monkeypatch):
  command = ["sweep", "configs/sweeps/ptx_coef.py:test", "--slurm", f"--workdir={tmp_path / 'w'}"]

  def sentence() -> str:
    with pytest.raises(SystemExit) as stopped:
      sweep.main(command)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("error: ") == 1
    return error

  assert (
    "there is no srun here; start from a node of a SLURM cluster, or run the trials here with"
    in sentence()
  )
  assert not (tmp_path / "w").exists()
  programs = pathlib.Path(os.environ["PATH"])
  for name, text in (("srun", ""), ("sbatch", "echo 'no such account' >&2; exit 1")):
    (programs / name).write_text(f"#!/bin/sh\n{text}\n")
    (programs / name).chmod(0o755)
  monkeypatch.setattr(sweep, "run_checks", lambda *_: None)
  assert "error: sbatch: no such account" in sentence()  # below what sbatch printed itself
  monkeypatch.setitem(sys.modules, "submitit", None)
  assert "SLURM needs the package submitit; pip install 'rlhf-jax[slurm]'" in sentence()


# ----------------------------------------------------------------------------- a real job


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> commands.Inputs:
  return commands.make_inputs(tmp_path_factory.mktemp("inputs"))


def local_job(repository, inputs, workdir, *more, **changes):
  """A started `launch.slurm --executor=local` of a short fine-tuning run."""
  environment = {
    name: value for name, value in commands.environment().items() if name != "PYTHONPATH"
  }
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "launch.slurm",
      "--executor=local",
      "--topology=cpu:1",
      *more,
      "--",
      *commands.train_flags(inputs, "sft", **changes),
      f"--workdir={workdir}",
    ],
    cwd=repository,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_a_training_job_through_submitit(repository, inputs, workdir_path):
  changed = repository / "rlhf" / "sft.py"
  before = changed.read_text()
  try:
    changed.write_text("raise RuntimeError('this is not committed')\n")
    job = local_job(repository, inputs, workdir_path, "--allow_dirty", sft__max_steps=2)
    text = job.communicate(timeout=600)[0]
  finally:
    changed.write_text(before)
  log = pathlib.Path(re.search(r"^job \d+: (.*)$", text, re.MULTILINE)[1])
  assert job.returncode == 0 and text.endswith("done\n"), text + log.read_text()
  assert f"export: {workdir_path}/export" in log.read_text()
  assert (workdir_path / "export" / "export.json").is_file()
  # The job ran the commit's code, not the files here, and says so.
  head = git(repository, "rev-parse", "HEAD")
  assert (workdir_path / "git.txt").read_text() == f"{head}\n"
  code = workdir_path / "submitit" / f"code-{head[:12]}"
  assert f"--config={code}/configs/sft.py:test,init" in (workdir_path / "command.txt").read_text()


def children(pid: int) -> list[int]:
  text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
  return [int(child) for child in text.split()]


@pytest.mark.slow
def test_a_job_that_is_asked_to_save_goes_on(repository, inputs, workdir_path):
  """SIGUSR2 as before a time limit: the loop saves, submitit requeues, the run goes on."""
  job = local_job(repository, inputs, workdir_path, sft__max_steps=40, checkpoint__every=1000)
  metrics = workdir_path / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while commands.num_lines(metrics) < 2:
    assert job.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  (controller,) = children(job.pid)
  (task,) = children(controller)
  os.kill(task, signal.SIGUSR2)
  text = job.communicate(timeout=600)[0]
  log = pathlib.Path(re.search(r"^job \d+: (.*)$", text, re.MULTILINE)[1]).read_text()
  assert job.returncode == 0, text + log
  assert "SIGTERM; saved step" in log and "going on" in log
  assert len((workdir_path / "git.txt").read_text().splitlines()) == 2
  assert [line["step"] for line in commands.untimed(metrics)][-1] == 40
