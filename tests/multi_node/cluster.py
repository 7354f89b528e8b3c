"""Two to four nodes on this machine: each has its own network, processes, mounts and host name, and an sshd.

A node is a network namespace on a bridge (which is in a namespace of its own, so that nothing of this machine's network
is touched), and a process tree whose first process is sshd in its own PID, mount and UTS namespaces: to kill that
process is to pull the plug. Names are known through a private /etc/hosts; keys are made for the test. When the
processes and namespaces are gone nothing is left.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("ip", "ssh", "sshd", "ssh-keygen", "nsenter", "unshare", "git", "pkill")
NETWORK = "10.77.0"
PATIENCE_SECONDS = 60


def why_not() -> str | None:
    """Why no nodes can be made here, None where they can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if missing:
        return f"not installed: {', '.join(missing)} (apt install iproute2 openssh-server openssh-client procps git)"
    name = f"kd{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"this machine makes no network namespaces: {made.stderr.strip()}" if made.returncode else None


def search_path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


class Node:
    """One node, to be switched on and off."""

    def __init__(self, name: str, number: int, directory: Path, prefix: str) -> None:
        self.name, self.address = name, f"{NETWORK}.{number + 1}"
        self.namespace = prefix + name
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def connect(self, switch: str) -> None:
        """Make its network, joined to the bridge in the namespace ``switch``."""
        port = f"port-{self.name}"
        call("ip", "netns", "add", self.namespace)
        peer = ["peer", "name", "eth0", "netns", self.namespace]
        call("ip", "-n", switch, "link", "add", port, "type", "veth", *peer)
        call("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
        call("ip", "-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        call("ip", "-n", self.namespace, "link", "set", "lo", "up")
        self.link("up")

    def link(self, state: str) -> None:
        """Plug its cable in (``up``) or out (``down``)."""
        call("ip", "-n", self.namespace, "link", "set", "eth0", state)

    def switch_on(self, mounts: dict[Path, Path] | None = None) -> None:
        """Boot: sshd answers when this returns. ``mounts``: {place: what this node alone sees there}."""
        lines = [
            f"hostname {self.name}",
            f"mount --bind {self.directory}/hosts /etc/hosts",
            f"mount --bind {self.directory}/resolv.conf /etc/resolv.conf",
            "mount -t tmpfs tmpfs /run",
            "mkdir /run/sshd",
            *(f"mount --bind {seen} {place}" for place, seen in (mounts or {}).items()),
            f"exec {shutil.which('sshd', path=search_path())} -D -e -f {self.directory}/sshd_config",
        ]
        own = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with (self.directory / f"sshd-{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *own, "sh", "-ec", "\n".join(lines)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while subprocess.run(self.ssh_to_itself("true"), capture_output=True, stdin=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline, (self.directory / f"sshd-{self.name}.log").read_text()
            time.sleep(0.1)

    def ssh_to_itself(self, *words: str) -> list[str]:
        return self.inside("ssh", "-F", str(self.directory / "ssh_config"), self.name, *words)

    def switch_off(self) -> None:
        """Pull the plug: every process of the node is gone, without a goodbye."""
        if self.process is not None:
            children = psutil.Process(self.process.pid).children()
            self.process.kill()  # unshare --kill-child: the node's first process goes with it, and all others with that
            self.process.wait()
            self.process = None
            psutil.wait_procs(children, timeout=PATIENCE_SECONDS)  # its port is free from here on

    def first_process(self) -> psutil.Process:
        """sshd, which has the node's process number 1."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()[0]

    def inside(self, *words: str) -> list[str]:
        """The command that runs ``words`` on this node."""
        try:
            first = self.first_process().pid
        except IndexError:  # it is only just starting
            return ["false"]
        return ["nsenter", "--target", str(first), "--mount", "--uts", "--pid", "--net", *words]

    def processes(self) -> list[psutil.Process]:
        """Every process on the node but sshd (its part for a connection may wait long for a peer that is cut off)."""
        return [process for process in self.first_process().children(recursive=True) if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.name() != "sshd"
    except psutil.NoSuchProcess:
        return False


class Cluster:
    """The nodes of one test."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        prefix = f"kd{os.getpid()}{names[0]}-"  # other tests may run beside this one
        self.switch = prefix + "switch"
        self.nodes = {name: Node(name, number, directory, prefix) for number, name in enumerate(names)}

    def connect(self) -> None:
        """Keys, names and network; the nodes are still off."""
        write_keys(self.directory, list(self.nodes.values()))
        call("ip", "netns", "add", self.switch)
        call("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        call("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for node in self.nodes.values():
            node.connect(self.switch)

    def hostfile(self, slots: int = 1) -> Path:
        """A hostfile of all nodes."""
        path = self.directory / "hostfile"
        path.write_text("".join(f"{name} slots={slots}\n" for name in self.nodes))
        return path

    def environment(self) -> dict[str, str]:
        """What a user on a node has set: threads and the ssh options of this cluster."""
        names = ("PATH", "HOME", "LANG", "TMPDIR")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        return kept | {"OMP_NUM_THREADS": "1", "KD_SSH_ARGS": f"-F {self.directory}/ssh_config"}

    def start(self, node: str, words: Sequence[str], cwd: Path, **environment: str) -> "subprocess.Popen[str]":
        """Run ``words`` on a node; its output and errors are one stream."""
        return subprocess.Popen(
            self.nodes[node].inside("sh", "-c", f"cd {shlex.quote(str(cwd))} && exec {shlex.join(words)}"),
            env=self.environment() | environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def take_down(self) -> None:
        """Processes and networks."""
        for node in self.nodes.values():
            node.switch_off()
        for name in (*(node.namespace for node in self.nodes.values()), self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextmanager
def cluster(directory: Path, names: Sequence[str]) -> Iterator[Cluster]:
    """Nodes called ``names``, switched on, until the ``with`` block ends."""
    made = Cluster(directory, names)
    try:
        made.connect()
        for node in made.nodes.values():
            node.switch_on()
        yield made
    finally:
        made.take_down()


def write_keys(directory: Path, nodes: Sequence[Node]) -> None:
    """Host key, user key, names and configuration of sshd and ssh, all in ``directory``."""
    for key in ("host_key", "user_key"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key))
    public = (directory / "host_key.pub").read_text()
    (directory / "known_hosts").write_text("".join(f"{node.name},{node.address} {public}" for node in nodes))
    (directory / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{node.address} {node.name}\n" for node in nodes)
    )
    (directory / "resolv.conf").write_text("# a name server that is out of reach would cost seconds\n")
    sshd = {
        "HostKey": f"{directory}/host_key", "AuthorizedKeysFile": f"{directory}/user_key.pub", "PidFile": "none",
        "UsePAM": "no", "StrictModes": "no", "PermitRootLogin": "prohibit-password", "PasswordAuthentication": "no",
        "UseDNS": "no", "MaxStartups": "50",
    }  # fmt: skip
    ssh = {
        "IdentityFile": f"{directory}/user_key", "IdentitiesOnly": "yes", "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f"{directory}/known_hosts", "GlobalKnownHostsFile": "none", "User": "root",
    }  # fmt: skip
    for name, settings in {"sshd_config": sshd, "ssh_config": ssh}.items():
        (directory / name).write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
