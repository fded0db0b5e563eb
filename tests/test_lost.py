"""What a dump of JAX becomes: our message, which names the process and how to go on."""

import pytest

from jseg import lost

FATAL = (
  "F1128 14:21:16.75 25992 client.h:80] Terminating process because the JAX distributed service "
  "detected fatal errors. This most likely indicates that another task died; see the other task "
  "logs for more details. absl::Status: "
)
UNHEALTHY = (
  "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n{}\n"
  "The tasks have crashed. Check the task logs"
)
BARRIER = (
  "INTERNAL: Shutdown barrier has failed.\nBarrier result: 'DEADLINE_EXCEEDED: Barrier timed out.\n"
  "# of tasks that reached the barrier: 1/3.\nThe first task at the barrier: {}. Some timed out "
  "task names:\n0\n2\n"
)
LEAD = "E1128 14:21:16.75 25992 coordination_service_agent.cc:289] Polled an error from\n"


@pytest.mark.parametrize(
  ("status", "message"),
  [
    (UNHEALTHY.format("1"), "process 1 of the run was lost"),
    (UNHEALTHY.format("/job:jax_worker/replica:0/task:1"), "process 1 of the run was lost"),
    (UNHEALTHY.format("12\n3"), "process 3, process 12 of the run was lost"),
    ("INTERNAL: Barrier failed: Task 2 heartbeat timeout. This", "process 2 of the run was lost"),
    (
      "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was",
      "process 0 of the run was lost",
    ),
    (
      "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /CoordinationService/Heartbeat",
      "process 0 of the run was lost",
    ),
    (BARRIER.format("1"), "process 1 of the run has ended, as it says itself"),
    (
      BARRIER.format("/job:jax_worker/replica:0/task:1"),
      "process 1 of the run has ended, as it says itself",
    ),
    (
      "ALREADY_EXISTS: Aborted connect attempt.\n\nRPC: /CoordinationService/RegisterTask",
      "another process of the run has the same --process-id",
    ),
    (
      "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /CoordinationService/RegisterTask",
      "the processes of the run didn't meet",
    ),
  ],
)
def test_a_dump_becomes_one_message(status, message):
  (printed,) = lost.relay([LEAD.encode(), f"{FATAL}{status}\n".encode(), b"stack\n"], "")
  assert printed.startswith(f"error: {message}".encode())
  assert printed.count(b"\n") == 1


def test_a_dump_that_comes_in_pieces_is_one():
  pieces = [LEAD, FATAL, UNHEALTHY.format("3"), "*** Check failure stack trace: ***\n"]
  (printed,) = lost.relay([piece.encode() for piece in pieces], "")
  assert b"process 3 of the run was lost" in printed


def test_what_is_no_dump_is_passed_on_as_it_is():
  lines = [b"I1128 nccl: a line\n", b"another\n", LEAD.encode(), b"the end\n"]
  assert b"".join(lost.relay(lines, "")) == b"".join(lines)
  assert next(lost.relay(lines, "")) == lines[0]  # at once
  unknown = [FATAL.encode(), b"of a kind that JAX hasn't had yet\n"]
  assert b"".join(lost.relay(unknown, "")) == b"".join(unknown)


def test_the_advice_names_the_step(tmp_path):
  assert "begins anew, as nothing was saved" in lost.advice(str(tmp_path))
  for name in ("9", "10", "11.orbax-checkpoint-tmp", "notes"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert "goes on from step 10" in lost.advice(str(tmp_path))
  assert "goes on from its last checkpoint" in lost.advice("")
