"""A program for the supervisor's tests: says what happens to it in DIRECTORY/events, and behaves as it is told.

    fake_child.py NAME DIRECTORY [BEHAVIOUR...]

Ready: DIRECTORY/NAME.ready exists. Behaviours: `crash` ends with code 3 and an error line; `crash-later` ends after it
was ready; `environ` prints its environment; `deaf` ignores SIGTERM; `slow` takes 0.3 s to end; `grandchild` starts a
process of its own; `unready` never is ready.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

name, directory, behaviours = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]


def tell(event: str) -> None:
    with (directory / "events").open("a") as events:
        events.write(f"{name} {event}\n")


def on_signal(signum: int, frame: object) -> None:
    tell(signal.Signals(signum).name)
    if "deaf" not in behaviours:
        if "slow" in behaviours:
            time.sleep(0.3)
        tell("ended")
        os._exit(0)


signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
if "environ" in behaviours:
    for variable in os.environ.items():
        print("{}={}".format(*variable), flush=True)
if "crash" in behaviours:
    print(f"{name} speaks", flush=True)
    print("briton: error: the flux is low", file=sys.stderr, flush=True)
    print("and a line after it", file=sys.stderr, flush=True)
    sys.exit(3)
if "--supervised" in behaviours:
    from briton.process.child_process import end_with_supervisor

    end_with_supervisor()
if "grandchild" in behaviours:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (directory / f"{name}.grandchild").write_text(str(grandchild.pid))
unfinished = directory / f"{name}.pid.unfinished"
unfinished.write_text(str(os.getpid()))
unfinished.replace(directory / f"{name}.pid")  # a reader sees the old number or the new one, never an empty file
tell("started")
if "unready" not in behaviours:
    (directory / f"{name}.ready").touch()
if "crash-later" in behaviours:
    time.sleep(0.2)
    (directory / f"{name}.ready").unlink()
    print("RuntimeError: later", flush=True)
    os._exit(4)
while True:
    time.sleep(60)
