"""Several processes: they meet, train as one does, stop together, and agree on what is wrong."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace as Fields

import jax
import numpy as np
import pytest
from helpers.host import several_config, smooth
from jax._src import distributed, xla_bridge
from jax._src.clusters import cloud_tpu_cluster, cluster
from jax._src.clusters.k8s_cluster import K8sCluster

import jseg
from jseg import cli, config, hosts, step
from jseg.export import export_run
from jseg.loop import alike, train
from jseg.run import Run, load_model
from jseg.tuning import tune_crf
from jseg.types import InputError

ROOT = pathlib.Path(__file__).parents[1]
LAUNCHERS = ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST")


@pytest.fixture(scope="module")
def start_two(tmp_path_factory):
  """A function: (exit statuses, outputs) of two processes with a device each."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
  }
  server = subprocess.Popen(
    [sys.executable, str(ROOT / "tests" / "helpers" / "host.py")],
    env=environment,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,  # a group of its own, with the two
  )

  def start(*arguments):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    output = tmp_path_factory.mktemp("output") / "process"
    arguments = [value if isinstance(value, int) else str(value) for value in arguments]
    server.stdin.write(json.dumps([port, str(output), arguments]) + "\n")
    server.stdin.flush()
    timer = threading.Timer(300, end)
    timer.start()
    answer = server.stdout.readline()
    timer.cancel()
    outputs = [pathlib.Path(f"{output}{index}").read_text() for index in range(2)]
    assert answer, outputs
    return json.loads(answer), outputs

  def end():
    os.killpg(server.pid, signal.SIGKILL)

  with server:
    yield start
    end()


def test_two_processes_stop_together_go_on_and_equal_one(start_two, tmp_path, monkeypatch):
  run, data_dir = tmp_path / "two", tmp_path / "data"
  statuses, outputs = start_two(run, data_dir, 4)
  assert statuses == [0, 0], outputs
  assert "stopped; saved at step" in outputs[0]
  steps = [int(path.name) for path in (run / "checkpoints").iterdir()]
  assert 4 < steps[0] < 20
  assert len(steps) == 1

  statuses, outputs = start_two(run, data_dir)
  assert statuses == [0, 0], outputs
  assert f"resuming at step {steps[0]}" in outputs[0]

  smooth(monkeypatch)
  monkeypatch.setattr(jax, "local_device_count", lambda: 2)
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  monkeypatch.setattr(step, "_devices", lambda: jax.devices()[:2])
  scores = train(several_config(data_dir), tmp_path / "one")
  one, two = (
    jax.device_get(load_model(tmp_path / name, "latest")[1]["params"]) for name in ("one", "two")
  )
  # Rounding alone, as the network is smooth. Other examples, or draws that go by the process, make
  # a difference of hundredths.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
  saved = Run.open(run).files.metrics.read_text().splitlines()[-1]
  assert f'"miou": {scores.miou:.6f}'[:-3] in saved


@pytest.mark.parametrize("killed", [0, 1])
def test_processes_agree_and_one_that_is_lost_ends_the_other(start_two, killed, tmp_path):
  saves = [tmp_path / "run"] if killed == 1 else []  # once will do
  statuses, outputs = start_two(killed, *saves)
  for output in outputs:
    full = "could not be saved in .*/run: the disk is full. .* untouched \\(steps: 1\\). Free some"
    assert len(re.findall(full, output)) == len(saves), output
  for output, first in zip(outputs, (True, False), strict=True):
    assert f"the file a.png is damaged; made by {first}" in output
    assert "differently: data.batch_size: 8 in process 0, 16 in process 1. Start all" in output
  assert statuses[killed] == -signal.SIGKILL
  assert statuses[1 - killed] != 0
  said = outputs[1 - killed]
  assert f"error: process {killed} of the run was lost" in said
  assert "Start the same command with the same --workdir on all hosts again" in said
  assert "Terminating process" not in said  # JAX's own words for it


@pytest.mark.parametrize(
  ("arguments", "variables", "message"),
  [
    (("10.0.0.1", 2, 0), {}, r"coordinator: '10.0.0.1' must be HOST:PORT"),
    (("10.0.0.1:80", 2, 2), {}, r"process_id: 2 must be from 0 to 1"),
    ((), {"JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES: 'two' must be a whole number"),
    ((), {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, r"can't be joined: .*id"),
    ((), {}, r"can't be joined: .*Start every process with --coordinator=HOST:PORT"),
    # sbatch without srun, and a process of Open MPI that lacks what mpirun sets.
    ((), {"SLURM_JOB_ID": "5"}, r"can't be joined: .*Start every process with"),
    (
      (),
      {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.96.0.1:34911"},
      r"can't be joined: KeyError 'OMPI_COMM_WORLD_SIZE'\. Start",
    ),
  ],
)
def test_what_is_missing_to_join_is_told(monkeypatch, arguments, variables, message):
  pretend(monkeypatch, variables)
  with pytest.raises(InputError, match=message):
    hosts.connect(*arguments)


class JoiningError(BaseException):
  """Raised in place of joining, with what would have been joined."""


def pretend(monkeypatch, variables):
  """Sets the environment of a launcher, and lets JAX raise `JoiningError` instead of joining."""

  def join(address, process, **_):
    raise JoiningError(address, distributed.global_state.num_processes, process)

  for name in (*hosts._VARIABLES.values(), *LAUNCHERS):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(hosts.lost, "watch", lambda run: None)
  monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
  monkeypatch.setattr(distributed, "global_state", distributed.State())
  library = Fields(get_distributed_runtime_client=join)
  monkeypatch.setattr(distributed, "_jax", library)


@pytest.mark.parametrize(
  ("variables", "joined"),
  [
    (
      {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476",
        "JAX_NUM_PROCESSES": "3",
        "JAX_PROCESS_ID": "2",
      },
      ("10.0.0.1:8476", 3, 2),
    ),
    (
      {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": "node[003-004]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
      },
      ("node003:61441", 2, 1),
    ),
    (
      {
        "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
      },
      ("10.96.0.1:61442", 4, 3),
    ),
  ],
)
def test_the_others_are_found_by_the_variables_of_launchers(monkeypatch, variables, joined):
  pretend(monkeypatch, variables)
  try:
    with pytest.raises(JoiningError) as found:
      hosts.connect()
  finally:  # launchers give each process a device of its own
    jax.config.update("jax_cuda_visible_devices", "all")
    jax.config.update("jax_rocm_visible_devices", "all")
  assert found.value.args == joined


def kubernetes(monkeypatch, pod, **api):
  """Pretends a pod of an indexed job of three; `api` replaces what its server's library does."""
  pretend(monkeypatch, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "train-2-abc"})
  monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
  job = Fields(metadata=Fields(name="train", labels={}), spec=Fields(parallelism=3))
  does = {
    "load": lambda: None,
    "pods": lambda namespace, field_selector: Fields(items=[pod]),
    **api,
  }
  core = Fields(
    list_namespaced_pod=does["pods"], list_namespaced_service=lambda _: Fields(items=[])
  )
  library = Fields(
    config=Fields(load_incluster_config=does["load"]),
    client=Fields(
      CoreV1Api=lambda: core,
      BatchV1Api=lambda: Fields(read_namespaced_job=lambda name, namespace: job),
      exceptions=Fields(ApiException=ApiError),
    ),
  )
  monkeypatch.setitem(sys.modules, "kubernetes", library)
  monkeypatch.setattr(K8sCluster, "_namespace", lambda: "default")
  monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.7")
  monkeypatch.setattr(time, "sleep", lambda seconds: None)
  for name in ("_pod", "_job", "_headless_svc", "_controller"):
    getattr(K8sCluster, name).__func__.cache_clear()


class ApiError(Exception):
  status, reason = 403, "Forbidden"


def a_pod(**spec):
  owner = Fields(controller=True, kind="Job")
  metadata = Fields(name="train-2", labels={"job-name": "train"}, owner_references=[owner])
  return Fields(metadata=metadata, spec=Fields(**{"subdomain": "jaxpods", **spec}))


def test_the_others_are_found_in_a_job_of_kubernetes(monkeypatch):
  kubernetes(monkeypatch, a_pod())
  with pytest.raises(JoiningError) as found:
    hosts.connect()
  assert found.value.args == ("train-0.jaxpods:55527", 3, 2)


def raise_error(error):
  raise error


@pytest.mark.parametrize(
  ("spec", "api", "message"),
  [
    ({"subdomain": None}, {}, "Pods within a job need a headless service .* job specification"),
    (
      {},
      {"pods": lambda **_: raise_error(ApiError())},
      r"Kubernetes API Error: 403 - Forbidden It appears .* permission for pod introspection",
    ),
    ({}, {"load": lambda: raise_error(Exception("no service token"))}, "no service token"),
    ({}, {"load": lambda: raise_error(Exception())}, "Exception"),
  ],
)
def test_what_kubernetes_lacks_is_told(monkeypatch, spec, api, message):
  kubernetes(monkeypatch, a_pod(**spec), **api)
  with pytest.raises(InputError, match=rf"can't be joined: {message}.*\. Start every process"):
    hosts.connect()


def tpu(monkeypatch, variables, metadata):
  """Pretends a worker of a TPU slice; `metadata` is what the machine's server tells."""
  for name in ("TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  for name in ("NUM_SLICES", "SLICE_ID", "COORDINATOR_ADDRESS"):
    monkeypatch.delenv(f"MEGASCALE_{name}", raising=False)
  pretend(monkeypatch, variables)
  for module in (cluster, cloud_tpu_cluster):
    monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata.get(key, ""), 200))
  monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.7")


WORKERS = {
  "agent-worker-number": "2",
  "worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2,c:3:10.0.0.3,d:4:10.0.0.4",
}
SLICES = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
SLICES += "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'"
OF_KUBERNETES = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "t-0.tpu,t-1.tpu",
  "TPU_WORKER_ID": "1",
}


@pytest.mark.parametrize(
  ("variables", "metadata", "joined"),
  [
    ({}, WORKERS, ("10.0.0.1:8482", 4, 2)),
    ({}, {**WORKERS, "tpu-env": SLICES}, ("10.0.0.9:8482", 8, 6)),
    (OF_KUBERNETES, {}, ("t-0.tpu:8482", 2, 1)),
  ],
  ids=["slice", "two slices", "Kubernetes"],
)
def test_the_others_are_found_on_a_tpu_slice(monkeypatch, variables, metadata, joined):
  tpu(monkeypatch, variables, metadata)
  with pytest.raises(JoiningError) as found:
    hosts.connect()
  assert found.value.args == joined


def test_a_worker_without_its_number_is_told(monkeypatch):
  tpu(monkeypatch, {}, {**WORKERS, "agent-worker-number": ""})
  with pytest.raises(
    InputError, match=r"can't be joined: invalid literal .*\. Start every process"
  ):
    hosts.connect()


@pytest.mark.parametrize("command", [["train"], ["evaluate", "run"]])
def test_a_command_that_finds_no_others_ends_in_one_message(monkeypatch, tmp_path, command):
  pretend(monkeypatch, {})
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as ended:
    cli.main([*command, "--distributed"])
  assert str(ended.value).startswith("error: the processes of the run can't be joined: coordinator")
  assert not list(tmp_path.iterdir())


def test_one_process_asks_nobody():
  assert hosts.is_first()
  assert hosts.everywhere(True)
  assert not hosts.everywhere(False)
  assert hosts.first_then_others(lambda: 3) == 3
  hosts.agree({"data.batch_size": 8})
  hosts.refuse("exporting")
  assert not hosts.stopped_before(5)
  with pytest.raises(InputError, match="as it is"):
    hosts.on_first(fail)


def test_what_works_in_one_process_is_refused_in_several(monkeypatch, tmp_path):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for start in (export_run, tune_crf):
    with pytest.raises(InputError, match="works in one process; start it in one"):
      start(tmp_path)


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch):
  devices = [Fields(process_index=process) for process in (0, 0, 1)]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "devices", lambda: devices)
  with pytest.raises(InputError, match="have 2, 1 devices; start each with as many"):
    hosts.agree({})


@pytest.mark.parametrize(
  ("talk", "part"),
  [
    (step.meet, "jax.block_until_ready"),
    (lambda: step.replicate(np.ones(3)), "jax.device_put"),
    (lambda: hosts.everywhere(True), "jax.experimental.multihost_utils.process_allgather"),
    (lambda: jseg.evaluate("run"), "jseg.evaluation.meet"),
    (lambda: jseg.evaluate("run"), "jax.block_until_ready"),  # in `meet`, which waits by itself
  ],
  ids=["meet", "replicate", "everywhere", "evaluate", "meet to evaluate"],
)
def test_jax_ends_what_fails_as_another_process_was_lost(monkeypatch, talk, part):
  """It knows which was; a traceback would come before its message, or beside it."""

  def fail(*_, **__):
    raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

  waited = []
  monkeypatch.setattr(part, fail)
  monkeypatch.setattr(hosts, "agree", lambda _: None)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts.time, "sleep", waited.append)
  with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
    talk()
  assert waited == [2 * hosts.HEARTBEAT_SECONDS]


@pytest.mark.parametrize("change", [{"optim.lr": 0.3}, {"steps": 7}, {"eval_every": 9}])
def test_settings_that_all_must_share_are_compared(change):
  before = config.default("unet")
  facts, changed = alike(before), alike(config.change(before, change))
  assert [key for key in facts if facts[key] != changed[key]] == list(change)
  elsewhere = {"data.root": "/other", "data.data_dir": "/other", "data.threads": 7}
  assert alike(config.change(before, elsewhere)) == facts
  assert facts["jseg"] == jseg.__version__


def fail():
  raise InputError("as it is")
