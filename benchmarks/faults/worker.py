"""A process that does cases on request: `python -m benchmarks.faults.worker FOLDER MEMORY KIND...`.

For each case it reads a line of JSON with a kind and a seed from its standard input, and answers with a line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from benchmarks.faults.kinds import kind
from benchmarks.faults.outcomes import judged


def main(arguments: list[str]) -> int:
    """Serve until the input ends."""
    folder, memory, *names = arguments
    # Keep what cases print out of the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kinds = {name: kind(name, Path(folder)) for name in names}
    if int(memory):
        limit = _mapped_bytes() + int(memory)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    print(json.dumps({"ready": names}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        made = kinds[asked["kind"]]
        verdict = judged(lambda made=made, seed=asked["seed"]: made.case(seed))  # type: ignore[misc]
        print(json.dumps({"outcome": verdict.outcome.value, "what": verdict.what}), file=answers)
    return 0


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
