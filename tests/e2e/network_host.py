"""Two hosts on one machine: each is a network, host name, process and mount namespace with an sshd, joined by a veth.

All of it belongs to the kernel: when the first process of a host is killed, so is everything that runs there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import psutil

from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
_TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname", "ssh", "ssh-keygen", "/usr/sbin/sshd")
_UNSHARE = ("unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
_SUBNET = "10.213.77"  # seen by the two alone
_COMMAND_TIMEOUT_S = 10.0
# $1: name, $2: hosts file, $3: sshd_config. /run and /etc/hosts are this host's own: the machine's are not touched.
_START = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind "$2" /etc/hosts
exec /usr/sbin/sshd -D -e -f "$3"
"""
# The last two lines end the session of a client that is cut off.
_SSHD_CONFIG = """
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
ClientAliveInterval 1
ClientAliveCountMax 3
"""
_SSH = """#!/bin/sh
exec ssh -F /dev/null -i {directory}/user_key -o UserKnownHostsFile={directory}/known_hosts -o BatchMode=yes \\
    -o ConnectTimeout=5 -o ServerAliveInterval=1 -o ServerAliveCountMax=3 "$@"
"""


def what_is_missing() -> str | None:
    """Why there can be no such hosts here; None where there can."""
    if os.geteuid() != 0:
        return "two hosts need root, to make network namespaces"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"two hosts need {', '.join(missing)}: apt-get install iproute2 openssh-server"
    probe = f"briton-probe-{os.getpid()}"
    try:
        _run("ip", "netns", "add", probe)
        _run("ip", "netns", "exec", probe, *_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/run")
        _run("ip", "link", "add", "eth0", "netns", probe, "type", "veth", "peer", "eth1", "netns", probe)
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or str(error)
        return f"two hosts need network namespaces, which are not allowed here: {reason.strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True, timeout=_COMMAND_TIMEOUT_S)
    return None


class NetworkHost:
    """One host. What `command` gives is run on it."""

    def __init__(self, name: str, directory: Path) -> None:
        """Start it; `wait_until_ready` follows. Its network namespace exists, and the files in `directory` do."""
        self.name = name
        self._log = directory / f"{name}.log"
        arguments = (name, str(directory / "hosts"), str(directory / "sshd_config"))
        with self._log.open("w") as log:
            self._holder = subprocess.Popen(
                ["ip", "netns", "exec", name, *_UNSHARE, "sh", "-c", _START, "sh", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        """Until its sshd listens; fails with its log when it does not."""

        def listens() -> bool:
            assert self._holder.poll() is None, self._log.read_text()
            return "Server listening" in self._log.read_text()

        wait_until(listens)
        self.connect()

    def command(self, *command: str) -> list[str]:
        """`command` as it runs on this host, in this repository's root."""
        entered = ["nsenter", "--target", str(self._sshd), "--net", "--uts", "--pid", "--mount"]
        return [*entered, "env", f"--chdir={ROOT}", *command]

    def processes(self) -> list[str]:
        """Command lines of what runs on this host beside its sshd; sessions of sshd are among them."""
        return [line for pid, line in _command_lines(self._namespace) if pid != self._sshd]

    def connect(self) -> None:
        """Plug its network cable in, and wait until the kernel has noticed, which takes up to a second: UCX does not
        use an interface before."""
        _run("ip", "-n", self.name, "link", "set", "eth0", "up")
        wait_until(lambda: " UP " in _run("ip", "-n", self.name, "-br", "link", "show", "eth0"))

    def cut_off(self) -> None:
        """Pull its network cable out."""
        _run("ip", "-n", self.name, "link", "set", "eth0", "down")

    def end(self) -> None:
        """End everything that runs on it: its processes end with their first, and that with `unshare`."""
        self._holder.kill()
        self._holder.wait(timeout=_COMMAND_TIMEOUT_S)

    @cached_property
    def _sshd(self) -> int:
        """The first process of this host."""
        (first,) = psutil.Process(self._holder.pid).children()
        return first.pid

    @cached_property
    def _namespace(self) -> str:
        return os.readlink(f"/proc/{self._sshd}/ns/pid")


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[NetworkHost, NetworkHost]]:
    """Two hosts that reach each other by name over ssh (`ssh_command`); they and all on them are gone afterwards."""
    names = [f"briton-{os.getpid()}-{letter}" for letter in "ab"]
    addresses = [f"{_SUBNET}.{number}" for number in (1, 2)]
    _write_files(directory, names, addresses)
    hosts: list[NetworkHost] = []
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            hosts.append(NetworkHost(name, directory))
        for host in hosts:
            host.wait_until_ready()
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.end()
        for name in names:  # the veth goes with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=_COMMAND_TIMEOUT_S)


def ssh_command(directory: Path) -> Path:
    """The ssh of two hosts made in `directory`: with their keys, and nothing of the user's."""
    return directory / "ssh"


def _write_files(directory: Path, names: list[str], addresses: list[str]) -> None:
    for key in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key))
    lines = [f"{address} {name}\n" for name, address in zip(names, addresses, strict=True)]
    (directory / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    host_key = (directory / "host_key.pub").read_text()
    (directory / "known_hosts").write_text("".join(f"{name} {host_key}" for name in names))
    (directory / "sshd_config").write_text(_SSHD_CONFIG.format(directory=directory))
    ssh = ssh_command(directory)
    ssh.write_text(_SSH.format(directory=directory))
    ssh.chmod(0o755)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S).stdout


def _command_lines(namespace: str) -> list[tuple[int, str]]:
    """Pid and command line of the processes in a process namespace, zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_there = os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
            if is_there and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, " ".join(process.cmdline())))
    return found
