"""A Slurm of one node: its daemons run as root, on ports and in a folder of their own."""

import math
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=2
SchedulerParameters=bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=localhost CPUs=4 State=UNKNOWN
PartitionName=normal Nodes=localhost Default=YES PriorityTier=1 GraceTime=2
PartitionName=urgent Nodes=localhost PriorityTier=2
"""


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to connections, one of which could take them before a daemon does."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        if len(found) < count:
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                found.append(port)
    return found


class Slurm:
    """The daemons, and what an administrator does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.hurried: dict[str, float] = {}  # when a requeued job's wait was last cut short
        for name in ("state", "spool"):
            (folder / name).mkdir()
        controller_port, node_port = _free_ports(2)
        self.config.write_text(CONFIG.format(folder=folder, controller_port=controller_port, node_port=node_port))
        self.environment = {**os.environ, "SLURM_CONF": str(self.config)}

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key": key, "socket": "munge.socket", "pid": "munged.pid", "log": "munged.log", "seed": "munge.seed"}
        paths = {name: self.folder / file for name, file in files.items()}
        munged = ["--key-file", paths["key"], "--socket", paths["socket"], "--pid-file", paths["pid"]]
        munged += ["--log-file", paths["log"], "--seed-file", paths["seed"]]
        self._daemon("munged", "--foreground", "--force", *munged)
        self.until(paths["socket"].exists)
        self._daemon("slurmctld", "-D", "-c")
        self.start_node()

    def start_node(self) -> None:
        self._daemon("slurmd", "-D", "-N", "localhost")
        self.until(lambda: self("sinfo", "--noheader", "--format=%T").strip() in ("idle", "mixed", "allocated"))

    def kill_node(self) -> None:
        """As a power cut does: the node's daemon, the step daemons and the jobs at once."""
        self._kill(lambda name, environment: name in ("slurmd", "slurmstepd") or b"SLURM_JOB_ID" in environment)
        self.daemons["slurmd"].wait()

    def stop(self) -> None:
        with suppress(subprocess.TimeoutExpired):  # of a controller that is no more
            subprocess.run(["scancel", "--me"], env=self.environment, capture_output=True, timeout=10)
        self._kill(lambda name, environment: True)
        for daemon in self.daemons.values():
            daemon.wait()

    def __call__(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def until(self, condition: Callable[[], object], seconds: float = 600) -> None:
        """Wait for a condition. Requeued jobs, which Slurm holds for two minutes, start after two seconds.

        Not at once: a node takes a job that comes back in the second in which it was killed for the one killed.
        """
        end = time.monotonic() + seconds
        while not condition():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            assert not ended, [(self.folder / f"{name}.out").read_text() for name in ended]
            assert time.monotonic() < end, self("squeue", "--array") + self("sinfo")
            if "slurmd" in self.daemons:
                for line in self("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
                    job, _, reason = line.partition(" ")
                    if reason == "BeginTime" and time.monotonic() - self.hurried.get(job, -math.inf) > 10:
                        self("scontrol", "update", f"JobId={job}", "StartTime=now+2")
                        self.hurried[job] = time.monotonic()
            time.sleep(0.5)

    def _daemon(self, name: str, *arguments: object) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [name, *map(str, arguments)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _kill(self, doomed: Callable[[str, dict[bytes, bytes]], bool]) -> None:
        """Kill those processes of this Slurm that are doomed by name and environment, until there is none.

        All are stopped before the first is killed, so that no step daemon lives to report that its job was.
        """
        while pids := {pid for pid, *what in self._processes() if doomed(*what)}:
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.05)

    def _processes(self) -> Iterator[tuple[int, str, dict[bytes, bytes]]]:
        """What has this Slurm's configuration in its environment: the daemons, the jobs, those who submit."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    continue
                variables = (process / "environ").read_bytes().split(b"\0")
                environment = dict(one.split(b"=", 1) for one in variables if b"=" in one)
                if environment.get(b"SLURM_CONF") == os.fsencode(self.config):
                    yield int(process.name), (process / "comm").read_text().strip(), environment
