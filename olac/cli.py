"""The `olac` command."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from rich.console import Console

from olac import __version__
from olac.ckks.engines import AUTO, ENGINES
from olac.errors import OlacError, plain
from olac.pages.commands import add_report
from olac.plugins import load_plugins
from olac.progress import Event, duration, showing
from olac.system.memory import GB, check_limits
from olac.system.output import forget_stdout
from olac.system.shapes import noun, one_of
from olac.system.threads import set_threads

if TYPE_CHECKING:
    from olac.ir.names import Names
    from olac.program.program import AnyProgram

log = logging.getLogger(__name__)

MANY_INPUTS = 16
"""From so many on, `olac encrypt` says how they share ciphertexts."""


class _Console(Console):
    """rich's console, which leaves it to `main` what happens if nobody reads the output any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse's message, with what was typed made safe for terminals."""
        super().error(plain(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 with a message for any of olac's errors, 2 for wrong usage.

    130 if it was interrupted, 141 if nobody reads the output, 70 for an error that is a bug of olac's.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # show characters that the terminal's encoding lacks as escapes
            stream.reconfigure(errors="backslashreplace")
    usual, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        return _main(arguments)
    finally:
        warnings.formatwarning = usual


def _main(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        set_threads(getattr(options, "process_threads", None))
        check_limits()
        load_plugins()
        code = int(options.run(options) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OlacError as error:
        return _failed(type(error).__name__, str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        return _failed("error", f"a library that olac needs can't be loaded: {plain(error)}")
    except BrokenPipeError:
        forget_stdout()
        return 141
    except OSError as error:
        forget_stdout()
        where = "" if error.filename is None else f" ({plain(error.filename)})"
        return _failed("error", f"{plain(error.strerror or error)}{where}")
    except MemoryError:
        return _failed(
            "InfeasibleError", "memory ran out. Free memory, or raise the limits of this process (ulimit -v)."
        )
    except Exception as error:
        if os.environ.get("OLAC_TRACEBACK"):
            raise
        # Show neither its message nor its traceback: they may hold values of inputs.
        return _failed(
            "internal error",
            f"{type(error).__name__} at {_place(error)}. This is a bug of olac: please report it with the command. "
            "With OLAC_TRACEBACK=1 the command shows the whole traceback.",
            70,
        )


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One line, as for errors, without the line of olac's code that warns."""
    return f"warning: {plain(message)}\n"


def _failed(kind: str, message: str, code: int = 1) -> int:
    with suppress(OSError):
        _Console(stderr=True).print(f"[bold red]{kind}[/]: ", end="")
        print(message, file=sys.stderr, flush=True)
    return code


def _place(error: BaseException) -> str:
    """The innermost line of olac's code that an error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}olac{os.sep}" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _from_zero(text: str) -> float:
    """An argument that is a number from 0 on, such as seconds."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{plain(text)} is not a number from 0 on")
    return value


def _port(text: str) -> int:
    """A port of TCP."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{plain(text)} is not a port, a whole number in 1 ... 65535")
    return int(text)


def _threads(text: str) -> int:
    """A number of threads."""
    from olac.system.threads import MOST

    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{plain(text)} is not a whole number in 1 ... {MOST}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="olac", description="Compile PyTorch models into programs that run on encrypted inputs.")
    parser.add_argument("--version", action="version", version=f"olac {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train, compile and run a digits CNN encrypted, and measure it")
    demo.add_argument("--output", type=Path, default=Path("build/demo.json"), help="the JSON file to write")
    demo.add_argument("--images", type=int, default=10, help="held-out images to encrypt (1 to 360)")
    demo.add_argument("--degree", type=int, default=None, help="degree of every activation (default: chosen for each)")
    demo.add_argument("--technique", choices=("FIXEDMANUAL", "FLEXIBLEAUTO"), default="FIXEDMANUAL")
    _add_engine(demo, "plan for this engine and run on it", ("auto", *ENGINES), "auto")
    demo.add_argument(
        "--max-compile-memory",
        type=_memory,
        metavar="GB",
        help="memory that this process may take while it compiles; also with a unit, such as 512MB",
    )
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="show what a compiled program is and what it will take")
    info.add_argument("program", type=Path)
    info.add_argument("--costs", type=Path, metavar="FILE", help="predict by this table, which calibrate-costs wrote")
    _add_engine(info, "predict for this engine")
    _add_max_memory(info, "show what a server does within this memory")
    info.set_defaults(run=_info)

    calibrate = commands.add_parser(
        "calibrate-costs", help="measure an engine on this machine: a table of costs for predictions and choices"
    )
    _add_engine(calibrate, "measure this engine", default=AUTO.name)
    calibrate.add_argument("--output", type=Path, required=True, metavar="FILE", help="the table to write (JSON)")
    calibrate.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    calibrate.add_argument(
        "--rings", type=int, nargs="+", metavar="LOG2", help="log2 of the rings to measure (default: 12 to 16)"
    )
    calibrate.add_argument("--passes", type=int, default=1, help="how often to measure everything; the fastest counts")
    calibrate.add_argument("--quick", action="store_true", help="few settings and calls, for a rough table")
    calibrate.set_defaults(run=_calibrate_costs)

    client = commands.add_parser(
        "client", help="write what clients need of a program, without its weights: keygen, encrypt and decrypt take it"
    )
    client.add_argument("program", type=Path)
    client.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write (JSON)")
    client.set_defaults(run=_client)

    keygen = commands.add_parser(
        "keygen", help="client: make secret.key, which stays, and evaluation.keys, which the server gets"
    )
    keygen.add_argument("program", type=Path)
    keygen.add_argument("folder", type=Path)
    _add_engine(keygen, "make keys for this engine")
    keygen.add_argument(
        "--parts", action="store_true", help="write evaluation keys to a folder, one file a key, in place of one file"
    )
    keygen.add_argument("--overwrite", action="store_true", help="replace an existing secret key")
    _add_threads(keygen)
    keygen.set_defaults(run=_keygen)

    more = commands.add_parser(
        "more-keys", help="client: make the keys that a new version of a program needs beside those that the server has"
    )
    for name, what in (
        ("program", "the new version"),
        ("secret_key", "of the keys that the server has"),
        ("before", "a program whose keys the server has, or its client's description"),
        ("output", "the folder to write the keys to, one file a key"),
    ):
        more.add_argument(name, type=Path, help=what)
    _add_engine(more, "make keys for this engine, as before")
    _add_threads(more)
    more.set_defaults(run=_more_keys)

    public = commands.add_parser("public-key", help="client: write a public key, for those who must not decrypt")
    for name in ("program", "secret_key", "output"):
        public.add_argument(name, type=Path)
    public.set_defaults(run=_public_key)

    encrypt = commands.add_parser("encrypt", help="client: encrypt inputs (rows, images) from a .npy file")
    encrypt.add_argument("program", type=Path)
    encrypt.add_argument("secret_key", type=Path, help="or a public key")
    for name in ("images", "output"):
        encrypt.add_argument(name, type=Path)
    encrypt.add_argument(
        "--force", action="store_true", help="also encrypt inputs far outside the calibrated range, with a warning"
    )
    encrypt.set_defaults(run=_encrypt)

    run = commands.add_parser("run", help="server: run a program on an encrypted input; needs no secret key")
    for name in ("program", "evaluation_keys", "input", "output"):
        run.add_argument(name, type=Path)
    _add_engine(run, "run on this engine, which the keys have to be for", shown="that of the keys")
    _add_max_memory(run, "memory that this process may take")
    _add_threads(run)
    run.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="save the state of the run here; a later run continues from it. With --executor ray, a folder",
    )
    run.add_argument(
        "--checkpoint-seconds",
        type=_from_zero,
        default=60.0,
        metavar="S",
        help="seconds between checkpoints, except at bootstraps",
    )
    run.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="ray: divide the input among workers on the cluster of RAY_ADDRESS or of this machine (docs/scaling.md)",
    )
    run.add_argument("--workers", type=_threads, metavar="N", help="with --executor ray: how many (default: 1)")
    run.add_argument("--record", type=Path, metavar="FILE", help="write what the run took, for olac report --run")
    run.set_defaults(run=_run)

    decrypt = commands.add_parser("decrypt", help="client: decrypt a result into a .npy file")
    for name in ("program", "secret_key", "result", "output"):
        decrypt.add_argument(name, type=Path)
    decrypt.add_argument(
        "--input", type=Path, metavar="FILE", help="the encrypted input that the result must belong to"
    )
    decrypt.add_argument(
        "--raw", action="store_true", help="write the program's outputs, such as logits, without the model's last steps"
    )
    decrypt.add_argument(
        "--decimals", type=int, metavar="D", help="round outputs that will be shared (SECURITY.md says what that does)"
    )
    decrypt.set_defaults(run=_decrypt)

    debug = commands.add_parser(
        "debug", help="client, with both keys: compare an encrypted run with a simulated one, layer by layer"
    )
    for name in ("program", "secret_key", "evaluation_keys"):
        debug.add_argument(name, type=Path)
    debug.add_argument("images", type=Path, help="a .npy file; those of its images that one run takes are compared")
    debug.add_argument(
        "--threshold", type=_from_zero, default=0.05, help="largest error of a layer that is right, in the layer's unit"
    )
    debug.add_argument("--json", type=Path, metavar="FILE", help="also write the table, for olac report --run")
    _add_max_memory(debug, "memory that this process may take")
    _add_threads(debug)
    debug.set_defaults(run=_debug)

    add_report(commands)
    _add_serving(commands)

    warm_up = commands.add_parser(
        "warm-up", help="compile the vector engine's kernels for this machine, which its first use does otherwise"
    )
    warm_up.set_defaults(run=_warm_up)
    return parser


def _add_serving(commands: argparse._SubParsersAction[_Parser]) -> None:
    publish = commands.add_parser("publish", help="server: put a program into a folder that olac serve serves")
    publish.add_argument("program", type=Path)
    publish.add_argument("data", type=Path, metavar="DIR", help="the folder; olac serve may be running")
    publish.add_argument("--id", metavar="ID", help="its name for clients (default: from the file's name)")
    publish.set_defaults(run=_publish)

    serve = commands.add_parser("serve", help="server: serve the published programs over HTTP (docs/serving.md)")
    serve.add_argument("--data", type=Path, required=True, metavar="DIR", help="programs, keys and jobs")
    serve.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1); others need --tokens")
    serve.add_argument("--port", type=_port, default=8750, help="(default: 8750)")
    serve.add_argument(
        "--memory",
        type=_memory,
        metavar="GB",
        help="for all workers together; also 512MB (default: 80 %% of what is free)",
    )
    serve.add_argument("--tokens", type=Path, metavar="FILE", help="lines name:token, for its owner alone (chmod 600)")
    serve.add_argument("--parallel", type=_threads, metavar="N", help="runs at once (default: one for each 4 cores)")
    serve.add_argument(
        "--threads",
        dest="worker_threads",
        type=_threads,
        metavar="T",
        help="of each run (default: its share of the cores)",
    )
    serve.add_argument("--max-jobs", type=_threads, default=100, metavar="N", help="of a client that wait or run")
    serve.add_argument(
        "--max-stored",
        type=_memory,
        default=64e9,
        metavar="GB",
        help="keys, inputs and results of a client (default: 64)",
    )
    serve.add_argument("--keep-days", type=_from_zero, default=7.0, metavar="D", help="for results (default: 7)")
    serve.add_argument("--checkpoint-seconds", type=_from_zero, default=60.0, metavar="S", help="as of olac run")
    serve.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate (PEM), to speak HTTPS without a proxy"
    )
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.set_defaults(run=_serve)

    remote = commands.add_parser("remote", help="client: use a server that olac serve runs")
    actions = remote.add_subparsers(required=True, metavar="ACTION")
    run = actions.add_parser("run", help="encrypt inputs, run them on a server, and decrypt the results")
    run.add_argument("url", metavar="URL")
    run.add_argument("program", metavar="PROGRAM_ID")
    run.add_argument("images", type=Path, metavar="IMAGES.npy")
    run.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.npy")
    run.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="the folder of this client's keys, made if there are none (default: keys for this call alone)",
    )
    run.add_argument("--token-file", type=Path, metavar="FILE", help="the token (default: the variable OLAC_TOKEN)")
    run.add_argument("--client", type=Path, metavar="FILE", help="the client's description that the server must have")
    run.add_argument("--raw", action="store_true", help="as of olac decrypt")
    run.add_argument("--decimals", type=int, metavar="D", help="as of olac decrypt")
    run.add_argument("--force", action="store_true", help="as of olac encrypt")
    run.set_defaults(run=_remote_run)


def _add_max_memory(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--max-memory", type=_memory, metavar="GB", help=f"{what}; also with a unit, such as 512MB")


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        dest="process_threads",
        type=_threads,
        metavar="T",
        help="threads of this process; default: all cores",
    )


def _add_engine(
    parser: argparse.ArgumentParser,
    what: str,
    choices: Sequence[str] = tuple(ENGINES),
    default: str | None = None,
    shown: str = "the one that the program was planned for",
) -> None:
    parser.add_argument("--engine", choices=choices, default=default, help=f"{what} (default: {default or shown})")


def _demo(options: argparse.Namespace) -> None:
    try:
        from olac.demo import run_demo

        importlib.import_module("sklearn")  # the demo imports it later, for its pictures
    except ModuleNotFoundError as error:
        raise OlacError(f"the demo needs torch and scikit-learn ({error}): pip install 'olac[demo]'") from error
    if not 1 <= options.images <= 360:
        raise OlacError(f"--images {options.images} is outside 1 ... 360")
    try:
        run_demo(
            options.output,
            options.images,
            degree=options.degree,
            technique=options.technique,
            engine=options.engine,
            max_compile_memory=options.max_compile_memory,
            console=_Console(),
        )
    except ValueError as error:  # an impossible option
        raise OlacError(str(error)) from error


def _info(options: argparse.Namespace) -> None:
    from olac.analysis.rotation_keys import held_within, memory_line
    from olac.costs.table import CostTable
    from olac.program.program import CompiledProgram
    from olac.report import parameter_lines, plan_table
    from olac.runtime.estimates import forecast
    from olac.system.threads import usable_threads

    console = _Console()
    program = CompiledProgram.load(options.program)
    try:
        found = forecast(program, options.engine, costs=CostTable.load(options.costs) if options.costs else None)
    except ValueError as error:  # prices of another engine
        raise OlacError(str(error)) from error
    estimate = found.estimate
    for line in parameter_lines(program):
        console.print(line, markup=False)
    console.print(
        f"predicted {plain(found.where)}: {_seconds(estimate.seconds_per_image)} {one_of(program.input_shape)}, "
        f"keys of {estimate.key_file_bytes / GB:.3f} GB in {estimate.keygen_seconds:.1f} s, "
        f"server {estimate.server_gb:.2f} GB ({estimate.server_gb_without_kept_weights:.2f} GB without kept weights), "
        f"client {estimate.client_gb:.2f} GB",
        markup=False,
    )
    if options.max_memory is not None:
        limit = options.max_memory
        held = held_within(program, limit, found.costs, usable_threads(), found.slowdown)
        console.print(memory_line(held, limit), soft_wrap=True)
    console.print(plan_table(program, estimate.node_seconds))


def _calibrate_costs(options: argparse.Namespace) -> None:
    from olac.backends.session import find_engine
    from olac.costs.fit import report
    from olac.system.files import check_writable, write_file

    check_writable(options.output)
    try:
        with showing(None, "measuring", "measured", log, {"measuring": 1.0}, closing=False) as say:

            def told(line: str) -> None:
                print(line, flush=True)
                say(line)

            table = find_engine(options.engine).measure_costs(
                options.threads, options.rings, quick=options.quick, passes=options.passes, progress=told
            )
    except ValueError as error:
        raise OlacError(str(error)) from error
    write_file(options.output, [table.to_json().encode()])
    print(report(table))
    print(f"a bootstrap takes {table.bootstrap_factor:.2f} times the primitives that it is made of")


def _seconds(value: float) -> str:
    """Seconds for people; small ones with two digits."""
    return f"{value:.2f} s" if value >= 0.1 else f"{value:.2g} s"


def _client(options: argparse.Namespace) -> None:
    from olac.program.program import CompiledProgram
    from olac.system.files import check_apart

    check_apart({"client's description": options.output}, {"program": options.program})
    CompiledProgram.load(options.program).client().save(options.output)


def _keygen(options: argparse.Namespace) -> None:
    from olac.program.program import CompiledProgram, load_any_program
    from olac.runtime import Client, commands
    from olac.runtime.estimates import forecast

    program, console = load_any_program(options.program), _Console()
    if isinstance(program, CompiledProgram):
        found = forecast(program, options.engine)
        estimate = found.estimate
        size, memory = estimate.key_file_bytes, estimate.client_gb * GB
        time_taken = f"{_seconds(estimate.keygen_seconds)} {plain(found.where)} and "
    else:
        client = Client(program, options.engine)
        size, memory, time_taken = client.key_file_bytes, client.memory_bytes, ""
    console.print(
        f"making keys of {size / GB:.3f} GB will take {time_taken}{memory / GB:.2f} GB of memory", markup=False
    )
    with showing(None, "making keys", "made keys", log, {"making keys": 1.0}) as say:
        secret, evaluation = commands.keygen(
            options.program,
            options.folder,
            overwrite=options.overwrite,
            progress=say,
            engine=options.engine,
            parts=options.parts,
        )
    console.print(f"{plain(secret)}: keep it to yourself, whoever has it can decrypt all", soft_wrap=True, markup=False)
    console.print(f"{plain(evaluation)}: for the server", soft_wrap=True, markup=False)


def _more_keys(options: argparse.Namespace) -> None:
    from olac.runtime import commands

    console = _Console()
    with showing(None, "making keys", "made keys", log, {"making keys": 1.0}) as say:
        made = commands.more_keys(
            options.program, options.secret_key, options.before, options.output, progress=say, engine=options.engine
        )
    if made:
        console.print(f"{plain(options.output)}: {len(made)} keys for the server", soft_wrap=True, markup=False)
    else:
        console.print("the server has all keys that the program needs", soft_wrap=True)


def _public_key(options: argparse.Namespace) -> None:
    from olac.runtime import commands

    commands.public_key(options.program, options.secret_key, options.output)


def _encrypt(options: argparse.Namespace) -> None:
    from olac.runtime import commands

    def announce(made: commands.Encrypted) -> None:
        stream, many = _beside(options.output), noun(made.program.input_shape, 2)
        print(made, file=stream)
        if made.program.batch == 1 and made.images >= MANY_INPUTS:
            print(f"a program that is compiled with batch=N has N {many} in a ciphertext", file=stream)

    commands.encrypt(
        options.program,
        options.secret_key,
        options.images,
        options.output,
        allow_out_of_range=options.force,
        announce=announce,
    )


def _run_on_ray(options: argparse.Namespace) -> int:
    from olac.scaling import commands

    if options.engine is not None:
        raise OlacError("--engine does not go with --executor ray: workers run on the engine that the keys are for")
    commands.run(
        options.program,
        options.evaluation_keys,
        options.input,
        options.output,
        executor=options.executor,
        workers=options.workers or 1,
        threads=options.process_threads,
        max_memory=options.max_memory,
        checkpoints=options.checkpoint,
        tell=lambda line: print(line, flush=True),
    )
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.executor == "ray":
        return _run_on_ray(options)
    if options.workers is not None:
        raise OlacError("--workers goes with --executor ray. This process takes all its cores for one run (--threads).")
    from olac.runtime import shown

    return shown.run(
        options.program,
        options.evaluation_keys,
        options.input,
        options.output,
        max_memory=options.max_memory,
        checkpoint=options.checkpoint,
        checkpoint_seconds=options.checkpoint_seconds,
        engine=options.engine,
        record=options.record,
    )


def _warm_up(options: argparse.Namespace) -> None:
    from olac.backends.vector.available import prepare
    from olac.runtime.shown import PREPARING, preparing

    start = time.monotonic()
    with showing(None, "getting ready", "ready", log, {PREPARING: 1.0}, closing=False) as say:
        prepare(preparing(say))
    _Console().print(f"the vector engine is ready ({duration(time.monotonic() - start)})")


def _publish(options: argparse.Namespace) -> None:
    from olac.serving.programs import publish

    name = publish(options.program, options.data, options.id)
    _Console().print(f"{plain(options.data)}: serves {name}", soft_wrap=True, markup=False)


def _serve(options: argparse.Namespace) -> None:
    try:
        from olac.serving.pool import Settings
        from olac.serving.quotas import Quotas
        from olac.serving.run import serve
    except ModuleNotFoundError as error:
        raise OlacError(
            f"the server needs fastapi, uvicorn and prometheus_client ({error}): pip install 'olac[serve]'"
        ) from error
    from olac.system.memory import available_bytes
    from olac.system.threads import cores

    if (options.tls_cert is None) != (options.tls_key is None):
        raise OlacError("--tls-cert and --tls-key belong together: give both, or neither")
    parallel = options.parallel or max(1, cores() // 4)
    serve(
        options.data,
        Settings(
            options.memory or 0.8 * available_bytes(),
            parallel,
            options.worker_threads or max(1, cores() // parallel),
            checkpoint_seconds=options.checkpoint_seconds,
            log_level=options.log_level,
        ),
        host=options.host,
        port=options.port,
        tokens=options.tokens,
        quotas=Quotas(jobs=options.max_jobs, stored_bytes=options.max_stored, keep_seconds=options.keep_days * 86400.0),
        tls=None if options.tls_cert is None else (options.tls_cert, options.tls_key),
    )


def _remote_run(options: argparse.Namespace) -> None:
    from olac.program.program import load_any_program
    from olac.serving.commands import remote_run
    from olac.serving.remote import RemoteServer, read_token

    known = None if options.client is None else load_any_program(options.client)
    token = read_token(options.token_file)
    console = _Console()
    with showing(None, "running on a server", "ran on a server", log, closing=False) as say:
        say(Event("waiting for the server", "waiting for the server"))  # for a while if it is away
        with RemoteServer(options.url, options.program, client_program=known, token=token) as server:
            values = remote_run(
                server,
                options.images,
                options.output,
                keys=options.keys,
                tell=lambda line: say(Event(line, line)),
                decimals=options.decimals,
                raw=options.raw,
                allow_out_of_range=options.force,
            )
    console.print(
        f"{plain(options.output)}: the decrypted outputs of {len(values)} inputs", soft_wrap=True, markup=False
    )


def _memory(text: str) -> float:
    """Bytes; a number without a unit is in GB."""
    from olac.system.memory import bytes_of

    try:
        return bytes_of(text, "the value", bare="GB")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _decrypt(options: argparse.Namespace) -> None:
    from olac.outcome import SHOWN_INPUTS, outcome_lines
    from olac.runtime import commands

    names: Names = ()

    def announce(program: AnyProgram) -> None:
        nonlocal names
        names = program.output_names

    values = commands.decrypt(
        options.program,
        options.secret_key,
        options.result,
        options.output,
        encrypted=options.input,
        raw=options.raw,
        decimals=options.decimals,
        announce=announce,
    )
    shown = ".4g" if options.decimals is None else f".{max(options.decimals, 0)}f"
    for line in outcome_lines(values, shown, names, plain(options.output)):
        print(line, file=_beside(options.output))
    if len(values) <= SHOWN_INPUTS:  # else the last line names the file
        print(f"written to {plain(options.output)}, shape {values.shape}", file=_beside(options.output))


def _beside(output: Path) -> TextIO:
    """The stream for lines about an output that may be standard output itself."""
    return sys.stderr if os.path.realpath(output) == os.path.realpath("/dev/stdout") else sys.stdout


def _debug(options: argparse.Namespace) -> None:
    from olac.report import debug_table
    from olac.runtime import commands
    from olac.runtime.debug import first_fault
    from olac.runtime.shown import preparing, showing_run

    with showing_run() as shown:
        rows = commands.debug(
            options.program,
            options.secret_key,
            options.evaluation_keys,
            options.images,
            max_memory=options.max_memory,
            progress=shown.node,
            preparing=preparing(shown.say),
            record=options.json,
        )
    _Console().print(debug_table(rows))
    fault = first_fault(rows, options.threshold)
    print("every layer is right" if fault is None else f"the first layer that goes wrong is {plain(fault)}")


if __name__ == "__main__":
    sys.exit(main())
