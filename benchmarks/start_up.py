"""How long it takes to start: `hfcompress --help`, and `import hfcompress` beside torch and transformers.

Every figure is of new processes, in pairs: Python alone and then the help; and in one process first torch and
`transformers.modeling_utils` and then hfcompress. CPU time does not grow by waiting on a busy machine.
Bytecode must have been written: the first, unmeasured round does that, unless PYTHONDONTWRITEBYTECODE is set.

    python -m benchmarks.start_up > benchmarks/results/start_up.md
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from tabulate import tabulate

from benchmarks.prune_global import machine

_IMPORTS = """
import json, time
marks = [(time.perf_counter(), time.process_time())]
import torch, transformers.modeling_utils
marks.append((time.perf_counter(), time.process_time()))
import hfcompress
marks.append((time.perf_counter(), time.process_time()))
print(json.dumps(marks))
"""
_COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "hfcompress --help": ["-m", "hfcompress_cli", "--help"],
    "hfcompress distill --help": ["-m", "hfcompress_cli", "distill", "--help"],
}
_LIMITS = {"hfcompress --help": "300", "import hfcompress": "50"}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    found: dict[str, list[tuple[float, float]]] = {}
    for repeat in range(repeats + 1):
        for name, seconds in _measure_all().items():
            if repeat:
                found.setdefault(name, []).append(seconds)
    rows = []
    for name, times in found.items():
        wall, cpu = ([1000 * one for one in part] for part in zip(*times, strict=True))
        rows.append(
            {
                "": name,
                "ms": f"{statistics.median(wall):.0f}",
                "fastest": f"{min(wall):.0f}",
                "ms of CPU": f"{statistics.median(cpu):.0f}",
                "allowed": _LIMITS.get(name, "-"),
            }
        )
    print("# Starting\n")
    print(f"{machine()}, Python {sys.version.split()[0]}; medians of {repeats} new processes in turn.\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _measure_all() -> dict[str, tuple[float, float]]:
    """Return the wall and CPU seconds of each command and import, measured once."""
    times = {name: _time_process(arguments) for name, arguments in _COMMANDS.items()}
    output = subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True).stdout
    start, others, ours = json.loads(output.splitlines()[-1])
    times["import torch, transformers.modeling_utils"] = (others[0] - start[0], others[1] - start[1])
    times["import hfcompress"] = (ours[0] - others[0], ours[1] - others[1])
    return times


def _time_process(arguments: list[str]) -> tuple[float, float]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
