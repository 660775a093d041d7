"""A process of its own in which openfhe can't be imported: everything from compiling to decrypting, by the commands.

python -m tests.runtime.without_openfhe FOLDER

What only Linux has is missing, too: functions of os, names of sysconf, /proc and /sys.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import io
import json
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LINUX_ALONE = (
    "copy_file_range",
    "eventfd",
    "getrandom",
    "memfd_create",
    "pidfd_open",
    "posix_fadvise",
    "posix_fallocate",
    "preadv",
    "pwritev",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_setscheduler",
    "splice",
    "MFD_CLOEXEC",
    "O_DIRECT",
    "O_NOATIME",
    "O_PATH",
    "O_TMPFILE",
)
SYSCONF_OF_LINUX = ("SC_AVPHYS_PAGES",)
FOLDERS_OF_LINUX = ("/proc/", "/sys/")


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname.split(".")[0] == "openfhe":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def leave_linux() -> None:
    """Have this process see no more than another POSIX system has."""
    for name in LINUX_ALONE:
        if hasattr(os, name):
            delattr(os, name)
    for name in SYSCONF_OF_LINUX:
        os.sysconf_names.pop(name, None)
    sysconf = os.sysconf

    def known(name: str | int) -> int:
        if name not in os.sysconf_names:
            raise ValueError("unrecognized configuration name")
        return sysconf(name)

    def missing(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, *arguments: Any, **named: Any) -> Any:
            if str(file).startswith(FOLDERS_OF_LINUX):
                raise FileNotFoundError(2, "No such file or directory", str(file))
            return real(file, *arguments, **named)

        return opened

    os.sysconf = known
    io.open = builtins.open = missing(open)


def main() -> None:
    folder = Path(sys.argv[1])
    sys.meta_path.insert(0, Blocker())
    leave_linux()
    import olac

    for module in pkgutil.walk_packages(olac.__path__, "olac."):
        importlib.import_module(module.name)
    import numpy as np
    import torch

    from olac.cli import main as command
    from olac.runtime import Client, Server

    os.chdir(folder)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    given = torch.rand(256, 8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        program = olac.compile(model, given.split(64), engine="vector")
        program.save("model.olac")
        np.save("x.npy", given[0].numpy())
        codes = [
            command(line.split())
            for line in (
                "warm-up",
                "info model.olac",
                "keygen model.olac keys",
                "encrypt model.olac keys/secret.key x.npy in.enc",
                "run model.olac keys/evaluation.keys in.enc out.enc",
                "decrypt model.olac keys/secret.key out.enc out.npy",
            )
        ]
        wanted = program.simulate(given[0].numpy())
        by_commands = float(np.max(np.abs(np.load("out.npy") - wanted)))
        client = Client(program)
        with Server(program, client.generate_keys()) as server:
            answer = client.decrypt(server.run(client.encrypt(given[0].numpy())))
    print(
        json.dumps(
            {
                "codes": codes,
                "by_commands": by_commands,
                "in_memory": float(np.max(np.abs(answer - wanted))),
                "openfhe": "openfhe" in sys.modules,
                "mode": (folder / "keys" / "secret.key").stat().st_mode & 0o777,
                "told": sorted({str(one.message) for one in told}),
            }
        )
    )


if __name__ == "__main__":
    main()
