"""`olac run --executor`: one input divided among Ray's actors, or run in this process, and the results joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from olac.ckks.words import Words
from olac.program.program import CompiledProgram
from olac.runtime import EncryptedInput, EncryptedResult
from olac.scaling.batches import run_batches
from olac.scaling.cluster import Executor, ray_for
from olac.system.files import check_apart, check_writable


def run(
    program: str | Path,
    evaluation_keys: str | Path,
    encrypted: str | Path,
    output: str | Path,
    *,
    executor: Executor,
    workers: int = 1,
    threads: int | None = None,
    max_memory: float | str | None = None,
    checkpoints: str | Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run the program on an encrypted input, divided among workers, and write the same file as one run.

    The input is read, and results are written, part by part.

    Args:
        evaluation_keys: a file, or a folder of parts. With Ray, all machines find it at this path.
        executor, threads, max_memory, checkpoints: as in `run_batches`. Ray is connected as its own settings say (the
            variable RAY_ADDRESS, or the cluster of this machine), and started on this machine if there is no cluster.
        workers: how many parts are computed at a time.
        tell: called with a line about how far it is.

    Raises:
        ArtifactError: a file is missing or damaged, or belongs to another program or key.
        MissingKeyError, InfeasibleError, BackendError: as `run_batches`.
    """
    inputs = {"program": program, "file of evaluation keys": evaluation_keys, "encrypted input": encrypted}
    check_apart({"result": output}, inputs)
    check_writable(output)
    compiled = CompiledProgram.load(program)
    given = EncryptedInput.open(compiled, encrypted)

    def words() -> Iterator[Words]:
        done = 0
        for part in run_batches(
            compiled,
            Path(evaluation_keys).absolute(),
            given,
            executor=executor,
            actors=workers,
            threads=threads,
            max_memory=max_memory,
            checkpoints=checkpoints,
        ):
            yield from part.words()
            done += part.images
            tell(f"{done} of {given.images} images")

    with ray_for(executor):
        EncryptedResult.write(output, compiled, given.identity, given.images, words(), input=given.digest)
    return Path(output)
