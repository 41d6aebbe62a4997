"""A program for the launcher's tests: starts SIZE ranks as an mpiexec does, each of which behaves as it is told.

    fake_mpiexec.py DIRECTORY SIZE [RANK=BEHAVIOUR...] [mpiexec=BEHAVIOUR]

DIRECTORY/NAME.pid has the process id of everyone, DIRECTORY/NAME.told what a rank was told; DIRECTORY/go makes those
go on that wait for it. Behaviours of ranks: `serve` (as without any) until told to drain, or until rank 0 has gone;
`absent` never joins; `load` joins, and loads for ever; `refuse` fails for a wrong config; `break` fails for another
reason; `die` goes without a word; `stay` serves, and stays when all others go. Of mpiexec: `end` ends with code 7
without starting anything; `hasty` ends as soon as one rank has.
"""

import os
import pathlib
import subprocess
import sys
import threading
import time

directory, size, told = pathlib.Path(sys.argv[1]), int(sys.argv[2]), dict(part.split("=") for part in sys.argv[3:])


def write(name: str, text: str) -> None:
    unfinished = directory / f"{name}.unfinished-{os.getpid()}"  # ranks may write the same at once
    unfinished.write_text(text)
    unfinished.replace(directory / name)


def await_go() -> None:
    while not (directory / "go").exists():
        time.sleep(0.01)


def run_mpiexec() -> None:
    write("mpiexec.pid", str(os.getpid()))
    if told.get("mpiexec") == "end":
        sys.exit(7)
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "PMI_RANK": str(rank)}) for rank in range(size)
    ]
    if told.get("mpiexec") == "hasty":
        while all(rank.poll() is None for rank in ranks):
            time.sleep(0.001)
        os._exit(1)
    sys.exit(max(rank.wait() for rank in ranks))


def run_rank(rank: int) -> None:
    from briton.ranks.member import Member
    from briton.ranks.messages import HubAddress

    write(f"{rank}.pid", str(os.getpid()))
    behaviour = told.get(str(rank), "serve")
    if behaviour == "absent":
        time.sleep(60)
    done = threading.Event()
    member = Member(HubAddress.parse(os.environ["BRITON_JOB"]), rank)
    if behaviour == "load":
        write(f"{rank}.joined", "")
        time.sleep(60)

    def on_abort(reason: str) -> None:
        write(f"{rank}.told", reason)
        if behaviour != "stay":
            os._exit(1)

    member.on_abort = on_abort
    if rank == 0:
        member.on_drain = done.set
    member.serve()
    write(f"{rank}.joined", "")
    if behaviour == "serve":
        while not (done.wait(0.01) if rank == 0 else (directory / "gone").exists()):
            time.sleep(0.01)
        member.leave()
        write("gone", "")
        sys.exit(0)
    if behaviour == "stay":
        time.sleep(60)
    await_go()
    if behaviour == "die":
        os._exit(9)
    code = 2 if behaviour == "refuse" else 1
    member.fail(f"it has to {behaviour}", code)
    os._exit(code)


if "PMI_RANK" in os.environ:
    run_rank(int(os.environ["PMI_RANK"]))
else:
    run_mpiexec()
