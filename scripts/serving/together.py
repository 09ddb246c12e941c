"""Run several commands in this process's group until the first of them ends: `python together.py JOBS`.

JOBS is a JSON list of {command, environment, log}. Who started this ends the group, as it would for a single server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main() -> int:
    running = []
    for job in json.loads(sys.argv[1]):
        with open(job["log"], "wb") as log:
            environment = {**os.environ, **job["environment"]}
            running.append(subprocess.Popen(job["command"], env=environment, stdout=log, stderr=subprocess.STDOUT))
    while True:
        for process in running:
            if (code := process.poll()) is not None:
                return code or 1  # a server does not end by itself
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
