"""The steps of an encrypted run, each in a process of its own: `python -m benchmarks.encrypted_steps STEP`.

A step reads its request from the standard input, as JSON, and writes events to the standard output, a line of JSON
each: progress, and at the end `result` or `error`. Client and server share nothing but files: the steps `keygen`,
`encrypt` and `decrypt` are the client's, `serve` is the server's, and neither loads torch, which `prepare` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data import DataError, data_folder, test_set, training_set
from benchmarks.named_engines import existing, named
from benchmarks.strategies import AUTO, parse_strategies
from benchmarks.yardstick import Yardstick
from olac.backends.session import Engine
from olac.ckks.engines import ENGINES
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import OlacError
from olac.ir.graph import Node
from olac.ir.ops import Bootstrap, LinearOp, Multiply, Polynomial, PolynomialProduct, Square
from olac.program.program import CompiledProgram
from olac.system.memory import GB, peak_rss_bytes
from olac.system.threads import set_threads

Request = dict[str, Any]
Result = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]

BEFORE = {"effort": "standard"}
"""What recipes leave out that were written before there was a choice."""
CHUNK = 64
"""Images that are simulated at a time."""
KINDS = ("convolution", "activation", "bootstrap", "encode", "other")
ROTATIONS = ("rotate", "hoisted_rotate", "ext_rotate")
UNLIMITED = 1 << 62


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step; 0 with a result, 2 for a user's mistake and 3 for an error of olac's, each with a message."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    # Keep what libraries print out of the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    # The row and the line of parameters say it, too.
    warnings.filterwarnings("ignore", ".*compiled without security")
    try:
        emit({"result": STEPS[name](json.load(sys.stdin), emit)})
    except DataError as error:
        emit({"error": str(error), "usage": True})
        return 2
    except OlacError as error:
        emit({"error": f"{type(error).__name__}: {error}", "usage": False})
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


# What is run ---------------------------------------------------------------------------------------------------------


def prepare(request: Request, emit: Emit) -> Result:
    """Read or make the program; write the images and what `simulate` gives for them; predict.

    The engine of the result is the one that is asked for, or else the one that the program was planned for.
    """
    path = Path(request["program"])
    made = None
    if path.exists():
        check_recipe(path, request["recipe"])
    else:
        start = time.perf_counter()
        compiled = _compile(request, emit)
        made = time.perf_counter() - start
        compiled.save(path)
        recipe_file(path).write_text(json.dumps(request["recipe"], indent=1) + "\n", encoding="utf-8")
    program = CompiledProgram.load(path)
    engine = request["engine"] or program.engine
    result = {"compile_seconds": made, "engine": engine, **facts_of(program), **predictions(program, request, engine)}
    if request["images"]:
        used = named(engine, program.parameters, lambda what, done, total: emit({"say": f"{what}: {done} of {total}"}))
        emit({"say": "measuring this machine"})
        result |= {**measured_here(program, request, used), **_expected(program, request, emit)}
    return result


def recipe_file(program: Path) -> Path:
    """The file beside a program that says what it was compiled from."""
    return program.with_name(program.name + ".json")


def check_recipe(program: Path, wanted: dict[str, Any]) -> None:
    """DataError if a program was compiled from something else; a program without a recipe is accepted."""
    if not recipe_file(program).exists():
        return
    try:
        there = json.loads(recipe_file(program).read_text(encoding="utf-8"))
        there = BEFORE | there if isinstance(there, dict) else there
        # Weights aren't needed any more; if none are named, those of the program are meant.
        other = [n for n in wanted if there[n] != wanted[n] and not (n == "weights" and wanted[n] is None)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{recipe_file(program)} does not say how {program.name} was compiled: {error}") from error
    if other:
        told = ", ".join(f"{name} {there[name]} there, {wanted[name]} here" for name in other)
        raise DataError(f"{program} was compiled otherwise ({told}): name another file or folder, or delete it")


def recipe(
    model: str, weights: Path | None, strategy: str, calibration: int, effort: str, pinned: dict[str, Any]
) -> dict[str, Any]:
    """What determines the program, as far as the command says it."""
    return {
        "model": model,
        "weights": None if weights is None else content_of(weights),
        "strategy": strategy,
        "calibration": calibration,
        "effort": effort,
        **pinned,
    }


def content_of(weights: Path) -> str:
    """SHA-256 of a file of weights."""
    try:
        return hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"there is no file {weights}; docs/benchmarks.md says where to get weights") from error


def pinned_parameters(pinned: dict[str, Any]) -> Parameters | None:
    """Parameters with bootstraps if the command pins the levels between them; ValueError if they are impossible."""
    if pinned["rest"] is None:
        return None
    setup = Bootstrapping(pinned["rest"], correction=BOOTSTRAP_FIRST_BITS - BOOTSTRAP_SCALE_BITS)
    return Parameters(
        pinned["log_ring"] or 16,
        setup.depth,
        BOOTSTRAP_SCALE_BITS,
        BOOTSTRAP_FIRST_BITS,
        pinned["digits"] or 3,
        FLEXIBLE,
        0 if pinned["insecure"] else 128,
        setup,
    )


def _compile(request: Request, emit: Emit) -> CompiledProgram:
    engine = request["engine"]
    if engine is not None and engine not in ENGINES:
        raise DataError(
            f"programs can't be planned for the engine {engine!r}, but those for others can run on it: give --program"
        )
    # Imports here are not in the client's and the server's processes.
    try:
        from benchmarks.accuracy import Measurement, load_model
        from olac.compiler import compile as compile_model
        from olac.options import AUTO_ENGINE, CompileOptions
    except ModuleNotFoundError as error:
        raise DataError(f"models need torch ({error}): pip install 'olac[torch]'") from error
    wanted, threads = request["recipe"], request["threads"]
    set_threads(threads)
    (strategy,) = parse_strategies([wanted["strategy"]], AUTO)
    assert strategy.fit is not None
    weights = None if request["weights"] is None else Path(request["weights"])
    benchmark, model = load_model(wanted["model"], weights)
    folder, calibration = data_folder(Path(request["data"])), wanted["calibration"]
    training, test = training_set(folder, calibration), test_set(folder, request["images"])
    measured = Measurement(wanted["model"], benchmark, model, training, test, request["images"], calibration)
    parameters = pinned_parameters(wanted)
    options = CompileOptions(
        fit=replace(strategy.fit, effort=wanted["effort"]),
        convolutions=strategy.convolutions,
        insecure=wanted["insecure"],
        log_ring=None if parameters is not None else wanted["log_ring"],
        parameters=parameters,
        max_memory=None if wanted["max_memory"] is None else wanted["max_memory"] * GB,
        threads=threads,
        engine=engine or AUTO_ENGINE,
    )
    say: Callable[[str], None] = lambda line: emit({"say": line})  # noqa: E731
    return compile_model(model, measured.calibration_batches, options, progress=say)


def facts_of(program: CompiledProgram) -> Result:
    """What the row says about the program itself."""
    parameters, report = program.parameters, program.report
    return {
        "fingerprint": program.fingerprint,
        "planned_for": program.engine,
        "parameters": parameters.describe(),
        "ring_dimension": parameters.ring_dimension,
        "log_qp": round(parameters.log_qp, 1),
        "security_bits": round(parameters.security_bits, 1),
        "degrees": [fit.degree for fit in report.fits],
        "depths": [fit.depth for fit in report.fits],
        "rotation_keys": len(program.rotations),
        "lowerings": dict(Counter(node.lowering.kind for node in program.graph.nodes if node.lowering is not None)),
        "agreement": None if report.check is None else report.check.agreement,
        "levels": [[node.id, node.op.name, _level(node)] for node in program.graph.nodes],
    }


def _level(node: Node) -> int:
    assert node.type.state is not None
    return node.type.state.level


def predictions(program: CompiledProgram, request: Request, engine: str) -> Result:
    found = program.estimate(request["threads"], costs=CostTable.default(existing(engine).model))
    return {
        "predicted_seconds": round(found.seconds_per_image, 4),
        "predicted_gb": round(found.server_gb, 2),
        "predicted_client_gb": round(found.client_gb, 2),
        "predicted_keygen_seconds": round(found.keygen_seconds, 1),
        "predicted_setup_seconds": round(found.setup_seconds, 1),
        "predicted_key_bytes": found.key_bytes,
        "predicted_node_seconds": {name: round(seconds, 3) for name, seconds in found.node_seconds.items()},
        "bootstraps": found.counts.get("bootstrap", 0),
        "rotations": sum(found.counts.get(name, 0) for name in ROTATIONS),
        "products": found.counts.get("multiply", 0),
    }


def measured_here(program: CompiledProgram, request: Request, engine: Engine) -> Result:
    """Seconds for this machine as it is now. Rows are compared by those of the table, which do not change."""
    from olac.runtime import forecast

    found = forecast(program, engine, threads=request["threads"])
    return {"here_seconds": None if found.slowdown is None else round(found.estimate.seconds_per_image, 2)}


def _expected(program: CompiledProgram, request: Request, emit: Emit) -> Result:
    """Write images and what `simulate` gives to the client's folder; returns its accuracy on more images if wanted."""
    from benchmarks.models import MODELS

    wanted = request["recipe"]
    if wanted["model"] not in MODELS:
        raise DataError(f"model {wanted['model']!r} is unknown; there are {', '.join(MODELS)}")
    benchmark = MODELS[wanted["model"]]
    count, more = request["images"], request["simulate"] or 0
    test = test_set(data_folder(Path(request["data"])), max(count, more))
    pixels, labels = test.images(max(count, more)), test.labels(max(count, more))
    outputs = []
    for start in range(0, len(pixels), CHUNK):
        emit({"say": f"simulating: {start} of {len(pixels)} images"})
        x = benchmark.images(pixels[start : start + CHUNK]).numpy()
        outputs.append(program.simulate(x).reshape(len(x), -1))
    simulated = np.concatenate(outputs)
    client = Path(request["client"])
    np.save(client / "images.npy", benchmark.images(pixels[:count]).numpy())
    np.save(client / "expected.npy", simulated[:count])
    np.save(client / "labels.npy", labels[:count])
    if not more:
        return {}
    return {"simulated_images": more, "top1_simulated": float(np.mean(simulated[:more].argmax(1) == labels[:more]))}


# The client ----------------------------------------------------------------------------------------------------------


def keygen(request: Request, emit: Emit) -> Result:
    """Make keys: the secret key into the client's folder, the others into the server's."""
    from olac.runtime import Client, client

    if request["force"]:
        vars(client)["available_bytes"] = lambda: UNLIMITED  # as asked for: the machine may swap
    made = Client(CompiledProgram.load(request["program"]), request["engine"])
    start = time.perf_counter()
    keys = made.generate_keys(lambda done, total: emit({"say": f"making keys: {done} of {total}"}))
    seconds = time.perf_counter() - start
    emit({"say": "writing keys"})
    made.save_secret_key(Path(request["client"]) / "secret.key", overwrite=True)
    keys.save(Path(request["server"]) / "evaluation.keys")
    peak = round(peak_rss_bytes() / GB, 3)
    return {
        "keygen_seconds": round(seconds, 2),
        "keygen_peak_rss_gb": peak,
        "key_bytes": keys.payload_bytes,
        "held_key_bytes": keys.memory_bytes,
    }


def encrypt(request: Request, emit: Emit) -> Result:
    """Encrypt the images one by one."""
    from olac.runtime import Client

    folder = Path(request["client"])
    client = Client.load(CompiledProgram.load(request["program"]), folder / "secret.key", request["engine"])
    start = time.perf_counter()
    images = np.load(folder / "images.npy")
    for index, image in enumerate(images):
        client.encrypt(image).save(_input(request, index))
    return {"encrypt_seconds": round((time.perf_counter() - start) / len(images), 3)}


def decrypt(request: Request, emit: Emit) -> Result:
    """Decrypt the results and compare them with `simulate`."""
    from olac.runtime import Client, EncryptedResult

    folder = Path(request["client"])
    program = CompiledProgram.load(request["program"])
    client = Client.load(program, folder / "secret.key", request["engine"])
    expected, labels = np.load(folder / "expected.npy"), np.load(folder / "labels.npy")
    start = time.perf_counter()
    ours = np.stack(
        [client.decrypt(EncryptedResult.load(program, _output(request, i))).reshape(-1) for i in range(len(expected))]
    )
    seconds = (time.perf_counter() - start) / len(expected)
    np.save(folder / "outputs.npy", ours)
    return {
        "decrypt_seconds": round(seconds, 3),
        "max_logit_error": float(np.max(np.abs(ours - expected))),
        "max_logit": float(np.max(np.abs(expected))),
        "same_class": int(np.sum(decided(ours) == decided(expected))),
        "correct": int(np.sum(decided(ours) == labels)),
    }


def decided(outputs: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The class of each row of logits, (n, classes), or (n, 1) for a decision; -1 if one is not finite."""
    chosen = outputs.argmax(1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    return np.where(np.isfinite(outputs).all(1), chosen, -1)


def _input(request: Request, index: int) -> Path:
    return Path(request["server"]) / f"input-{index:04d}.ct"


def _output(request: Request, index: int) -> Path:
    return Path(request["server"]) / f"result-{index:04d}.ct"


# The server ----------------------------------------------------------------------------------------------------------


def serve(request: Request, emit: Emit) -> Result:
    """Run the program on every input, one after the other."""
    from olac.runtime import EncryptedInput, EvaluationKeys, Progress, Server, server

    if request["force"]:
        vars(server)["available_bytes"] = lambda: UNLIMITED  # as asked for: the machine may swap
    program = CompiledProgram.load(request["program"])
    emit({"say": "loading keys"})
    start = time.perf_counter()
    keys = EvaluationKeys.load(program, Path(request["server"]) / "evaluation.keys")
    running = Server(program, keys, engine=request["engine"])
    if program.parameters.bootstrapping is None:
        emit({"say": "encoding weights"})
        running.prepare()
    setup = time.perf_counter() - start
    walls, cpus = [], []
    nodes: dict[str, float] = {}
    encodes: dict[str, float] = {}
    yardstick, bootstraps = Yardstick(), 0.0
    before = cpu_before = 0.0

    def after(progress: Progress) -> None:
        nonlocal before, cpu_before, bootstraps
        spent, before = running.encode_seconds - before, running.encode_seconds
        nodes[progress.node] = nodes.get(progress.node, 0.0) + progress.seconds
        encodes[progress.node] = encodes.get(progress.node, 0.0) + spent
        emit({"image": index, "node": progress.node, "level": progress.level, "seconds": progress.seconds})
        if isinstance(program.graph[progress.node].op, Bootstrap):
            bootstraps += time.process_time() - cpu_before
        yardstick.sample()
        cpu_before = time.process_time()

    for index in range(request["images"]):
        given = EncryptedInput.load(program, _input(request, index))
        yardstick.sample()
        before, beside, beside_cpu = running.encode_seconds, yardstick.wall, yardstick.cpu
        wall, cpu = time.perf_counter(), time.process_time()
        cpu_before = cpu
        result = running.run(given, after)
        walls.append(time.perf_counter() - wall - (yardstick.wall - beside))
        cpus.append(time.process_time() - cpu - (yardstick.cpu - beside_cpu))
        result.save(_output(request, index))
    return {
        "cpu_seconds": round(sum(cpus) / len(cpus), 3),
        "wall_seconds": round(sum(walls) / len(walls), 3),
        "wall_seconds_each": [round(seconds, 3) for seconds in walls],
        "cpu_seconds_each": [round(seconds, 3) for seconds in cpus],
        "setup_seconds": round(setup, 2),
        "peak_rss_gb": round(peak_rss_bytes() / GB, 3),
        "node_seconds": {name: round(seconds / len(walls), 4) for name, seconds in nodes.items()},
        "kind_seconds": _by_kind(program, nodes, encodes, len(walls)),
        "bootstraps_cpu_seconds": round(bootstraps / len(walls), 3),
        "ntt_cpu_seconds": round(yardstick.seconds, 6),
    }


def _by_kind(
    program: CompiledProgram, nodes: dict[str, float], encodes: dict[str, float], images: int
) -> dict[str, float]:
    """Seconds of an image by kind of node; encoding is a kind of its own."""
    sums = dict.fromkeys(KINDS, 0.0)
    for name, seconds in nodes.items():
        sums["encode"] += encodes[name]
        sums[kind(program.graph[name])] += seconds - encodes[name]
    return {name: round(seconds / images, 3) for name, seconds in sums.items()}


def kind(node: Node) -> str:
    """The kind of a node in these sums."""
    if isinstance(node.op, LinearOp):
        return "convolution"
    if isinstance(node.op, Polynomial | PolynomialProduct | Square | Multiply):
        return "activation"
    return "bootstrap" if isinstance(node.op, Bootstrap) else "other"


def costs(request: Request, emit: Emit) -> Result:
    """`prepare` for networks of `costs`; it needs torch."""
    from benchmarks import cost_step

    return cost_step.run(request, emit)


STEPS: dict[str, Callable[[Request, Emit], Result]] = {
    "prepare": prepare,
    "costs": costs,
    "keygen": keygen,
    "encrypt": encrypt,
    "serve": serve,
    "decrypt": decrypt,
}

if __name__ == "__main__":
    sys.exit(main())
