"""A Slurm of two nodes on this machine, for the tests marked `slurm`: real daemons on loopback, no systemd, no root.

The daemons stay in the foreground and die with the tests (`setpriv --pdeathsig`), whatever ends those. The processes of
a job do not; SIGTERM is taken as Ctrl+C, so that they are ended too, and only kill -9 leaves them to their own end.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from getpass import getuser
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
SYSTEM = f"{os.environ['PATH']}:/usr/sbin"
NODES = ("n1", "n2")
TIMEOUT = 120  # seconds for any job of these tests

CONF = """\
ClusterName=t
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A credential lives for two minutes by default, and so long a requeued job would wait.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
PlugStackConfig={folder}/plugstack.conf
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes={names} Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes={names} MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


class Slurm:
    """The commands of a cluster, run in a folder of one test.

    Args:
        folder: where jobs run.
        environment: of the commands and, since sbatch hands it on, of the jobs.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def __call__(self, *command: str, ok: bool = True) -> str:
        """Runs a command and returns what it wrote."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not ok, f"{' '.join(command)}: {done.stderr}"
        return done.stdout + done.stderr

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode, Restarts, StdOut, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self("scontrol", "--oneliner", "show", "job", job)))

    def wait_for(self, condition, what: str, seconds: float = TIMEOUT) -> None:
        """Waits until `condition()` is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"no {what} after {seconds} s; {self('squeue')}{self.logs()}"
            time.sleep(0.1)

    def wait_for_end(self, job: str, seconds: float = TIMEOUT) -> dict[str, str]:
        """Waits until a job is over, and returns what Slurm knows of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: self.job(job)["JobState"] in over, f"end of job {job}", seconds)
        return self.job(job)

    def logs(self) -> str:
        """The ends of all logs, for messages of tests that fail."""
        files = sorted(self.folder.rglob("*.out"))
        return "".join(f"\n--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The environment that reaches the cluster."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM) is None]
    if missing:
        pytest.skip(
            f"Slurm is not installed here: no {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    write_configuration(folder)
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": SYSTEM}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        for name, command in daemons(folder):
            stack.enter_context(running(name, command, folder, environment))
        cluster = Slurm(folder, environment)
        idle = "sinfo", "--noheader", "--states=idle", "--format=%D"
        cluster.wait_for(lambda: cluster(*idle, ok=False).strip() == str(len(NODES)), "idle nodes", 30)
        stack.callback(end_jobs, cluster)
        yield environment


@pytest.fixture
def slurm(cluster, tmp_path):
    """The cluster, for jobs in the test's own folder."""
    found = Slurm(tmp_path, cluster)
    yield found
    end_jobs(found)


def end_jobs(slurm: Slurm) -> None:
    """Kills what is left in the queue: the processes of a job outlive a slurmd."""
    slurm("scancel", f"--user={getuser()}")
    slurm.wait_for(lambda: not slurm("squeue", "--noheader").strip(), "empty queue", 30)


def write_configuration(folder: Path) -> None:
    ports = free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "plugstack.conf").touch()
    text = CONF.format(folder=folder, ports=ports, user=getuser(), nodes="\n".join(nodes), names=",".join(NODES))
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").touch(mode=0o400)
    os.chmod(folder / "munge.key", 0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))


def daemons(folder: Path):
    """Name and command of each daemon, in the foreground."""
    # --force: a parent folder of the socket that anybody may write to is a warning, not an error.
    files = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    yield "munged", ["munged", "--foreground", "--force", "--num-threads=2", *munge]
    yield "slurmctld", ["slurmctld", "-D"]
    for node in NODES:
        yield f"slurmd.{node}", ["slurmd", "-D", "-N", node]


@contextmanager
def running(name: str, command: list[str], folder: Path, environment: dict[str, str]):
    """Runs a daemon within the block; its log is NAME.log."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *command], env=environment, stdout=log, stderr=log, cwd=folder
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
