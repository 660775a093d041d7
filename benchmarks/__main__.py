"""`python -m benchmarks`: accuracy, encrypted runs, bootstraps, engines, models that olac takes, faults, and tables."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks import bootstraps, costs, encrypted, engines, examples, security, serving, structure
from benchmarks.comparison import compare
from benchmarks.data import DataError, data_folder, test_set, training_set
from benchmarks.faults import command as faults_command
from benchmarks.results import ResultsError, ResultsFile, Row, plot, read_rows, require_plot
from benchmarks.strategies import StrategyError, parse_strategies
from benchmarks.tables import markdown_table, rich_tables
from benchmarks.zoo import command as models_command
from olac.backends.session import DEFAULT
from olac.ckks.parameters import OPENFHE_RECIPE, RECIPES
from olac.errors import OlacError
from olac.passes.choose_lowerings import kinds
from olac.polynomials.modes import EFFORTS, KEYWORDS
from olac.system.threads import set_threads

if TYPE_CHECKING:
    from benchmarks.accuracy import Measurement

WIDEST = 300
"""Characters of a line that is not shown on a terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 if a strategy failed, 2 with a message for wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return int(options.run(options, shlex.join(["python", "-m", "benchmarks", *given])))
    except (StrategyError, DataError, ResultsError, security.EstimatorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except encrypted.RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except OlacError as error:
        print(f"failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    priced = commands.add_parser("costs", help="seconds, memory, keys and accuracy of networks from small to large")
    costs.add_arguments(priced, _positive)
    _add_rows(priced)
    priced.set_defaults(run=_costs)

    accuracy = commands.add_parser("accuracy", help="top-1 of a model by strategy, in plaintext with polynomials")
    _add_model(accuracy)
    accuracy.add_argument(
        "--strategies",
        nargs="+",
        required=True,
        metavar="LIST",
        help="e.g. auto,uniform:3,uniform:7,normal:7,minimax:10,quadratic,ola:40,default:40,relu",
    )
    accuracy.add_argument("--images", type=_positive, default=10_000, metavar="N", help="test images; default 10000")
    accuracy.add_argument(
        "--calibration", type=_positive, default=1024, metavar="N", help="training images; default 1024"
    )
    _add_effort(accuracy)
    accuracy.add_argument(
        "--fit-seconds", type=_positive, metavar="S", help="end the reconstruction after this time; default: no limit"
    )
    accuracy.add_argument("--threads", type=_positive, metavar="N", help="threads of torch; default: torch's choice")
    _add_rows(accuracy)
    accuracy.add_argument("--plot", type=Path, metavar="FILE", help="draw all rows of the file: .svg or .png")
    accuracy.set_defaults(run=_accuracy)

    _throughput_parser(
        commands.add_parser("throughput", help="CPU seconds an image of runs of many images, against one alone")
    )
    _finetune_parser(commands.add_parser("finetune", help="train a network of squares with labels, and its top-1"))

    _encrypted_parser(commands.add_parser("encrypted", help="seconds, memory and errors of encrypted runs"))

    _bootstraps_parser(commands.add_parser("bootstraps", help="seconds, noise and memory of one bootstrap"))

    _engines_parser(commands.add_parser("engines", help="primitives and a program on several engines, side by side"))

    estimates = commands.add_parser("security", help="what the lattice estimator says about the bounds of security")
    security.add_arguments(estimates)
    estimates.set_defaults(run=_security)
    faults = commands.add_parser("faults", help="cause faults of many kinds and show what each led to")
    faults_command.add_arguments(faults, _positive)
    faults.set_defaults(run=_faults)

    taken = commands.add_parser("models", help="which operations, nets and networks olac takes as they come")
    models_command.add_arguments(taken, _positive)
    _add_rows(taken)
    taken.set_defaults(run=_models)

    served = commands.add_parser("serving", help="many jobs of many clients on one server of olac serve")
    serving.add_arguments(served)
    served.set_defaults(run=_serving)

    shown = commands.add_parser("examples", help="run the scripts of examples/: seconds and memory of each")
    examples.add_arguments(shown)
    shown.set_defaults(run=_examples)

    shapes = commands.add_parser("structure", help="levels of networks of quadratics, and what each rule saves")
    shapes.add_argument(
        "--models", nargs="+", default=list(structure.DEFAULT), metavar="NAME", help="benchmarks/models.py"
    )
    shapes.set_defaults(run=_structure)

    drawing = commands.add_parser("plot", help="total depth against top-1")
    drawing.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE")
    drawing.add_argument("--output", type=Path, required=True, metavar="FILE", help=".svg or .png")
    drawing.set_defaults(run=_plot)

    table = commands.add_parser("table", help="the rows as a table in Markdown")
    table.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE")
    table.set_defaults(run=_table)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="resnet8, resnet20, ... (benchmarks/models.py)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a state dict, .pt or .safetensors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files; default: $OLAC_DATA")


def _add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--effort", choices=tuple(EFFORTS), default=KEYWORDS["effort"], help="of the default fit; default standard"
    )


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the file that rows are written to")
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has already")


def _encrypted_parser(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--strategy", default="uniform:3", metavar="ITEM", help="as in `accuracy`, or plan:3-7-...; default uniform:3"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="LIST",
        help="predict these strategies, e.g. uniform:3,uniform:3@multiplexed, and run those that time allows",
    )
    parser.add_argument(
        "--minutes",
        type=_count,
        default=60,
        metavar="M",
        help="with --compare: minutes for all runs together, the fastest first; 0 only predicts; default 60",
    )
    parser.add_argument(
        "--lowering",
        choices=kinds(),
        default="auto",
        help="lowering of convolutions, if a strategy does not name one after an @; default auto",
    )
    parser.add_argument("--images", type=_positive, default=1, metavar="K", help="test images to encrypt; default 1")
    parser.add_argument("--simulate", type=_positive, metavar="N", help="give top-1 of simulate() on N test images")
    parser.add_argument(
        "--calibration", type=_positive, default=1024, metavar="N", help="training images; default 1024"
    )
    _add_effort(parser)
    parser.add_argument("--threads", type=_positive, metavar="T", help="threads of every process; default: all cores")
    parser.add_argument(
        "--engine", metavar="NAME", help="openfhe or vector; default: the one that the program is planned for"
    )
    _add_rows(parser)
    parser.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="the compiled program: used if it exists, on any engine, else planned for --engine and written",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep program, keys and ciphertexts there, for reuse")
    parser.add_argument("--force", action="store_true", help="run even if memory is too small")
    parser.add_argument("--max-memory", type=float, metavar="GB", help="memory that the server may take")
    parser.add_argument("--insecure", action="store_true", help="waive the check of security, for tests")
    parser.add_argument("--log-ring", type=_positive, metavar="R", help="pin log2 of the ring dimension")
    parser.add_argument("--rest", type=_positive, metavar="L", help="pin bootstrapping that leaves L levels")
    parser.add_argument("--digits", type=_positive, metavar="D", help="with --rest: digits of key switching; default 3")
    parser.set_defaults(run=_encrypted)


def _finetune_parser(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--epochs", type=_count, default=10, metavar="N", help="passes over the images; default 10")
    parser.add_argument("--images", type=_positive, default=10_000, metavar="N", help="test images; default 10000")
    parser.add_argument(
        "--calibration", type=_positive, default=50_000, metavar="N", help="training images; default 50000"
    )
    _add_effort(parser)
    parser.add_argument(
        "--fit-seconds", type=_positive, metavar="S", help="end the fit that training starts from after this time"
    )
    parser.add_argument("--rate", type=_fraction, metavar="R", help="largest rate; default: by the error at the start")
    parser.add_argument(
        "--mixed", type=_share, default=0.0, metavar="S", help="share of batches whose images are mixed; default 0"
    )
    parser.add_argument("--labels", type=_share, default=1.0, metavar="W", help="weight of the labels; default 1")
    parser.add_argument("--save", type=Path, metavar="FILE", help="the state dict of the trained module, a .pt file")
    parser.add_argument("--program", type=Path, metavar="FILE", help="compile it, too, and write the program")
    parser.add_argument(
        "--precision",
        type=_fraction,
        metavar="P",
        help="of the program: largest error by noise, relative",
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of torch; default: torch's choice")
    _add_rows(parser)
    parser.set_defaults(run=_finetune)


def _throughput_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="NAME", help="logistic, digits, or a network of benchmarks/models.py"
    )
    parser.add_argument("--images", type=_positive, nargs="+", default=[], metavar="N", help="images of a run")
    parser.add_argument("--ensembles", type=_positive, nargs="+", default=[], metavar="K", help="models of an ensemble")
    parser.add_argument("--engine", default="vector", metavar="NAME", help="openfhe or vector; default vector")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a state dict, .pt or .safetensors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files; default: $OLAC_DATA")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of the server; default: all cores")
    _add_rows(parser)
    parser.set_defaults(run=_throughput)


def _bootstraps_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default=DEFAULT, metavar="NAME", help="openfhe or vector; default openfhe")
    _add_chain(parser)
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default=OPENFHE_RECIPE,
        help="levels of a bootstrap: openfhe, which all engines run, or vector, for that engine alone; default openfhe",
    )
    parser.add_argument("--program", type=Path, metavar="FILE", help="take the parameters of a compiled program")
    parser.add_argument("--complex", action="store_true", help="bootstrap real and imaginary parts, on openfhe")
    parser.add_argument("--rounds", type=_positive, default=2, metavar="K", help="bootstraps; the fastest counts")
    _add_rows(parser)
    parser.set_defaults(run=_bootstraps)


def _engines_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engines",
        nargs="+",
        default=[DEFAULT, "vector"],
        metavar="NAME",
        help="measured in turns; default openfhe vector",
    )
    _add_chain(parser)
    parser.add_argument(
        "--depth", type=_positive, metavar="L", help="a chain of L levels, without a bootstrap (--rest, --budget)"
    )
    parser.add_argument(
        "--limbs",
        nargs="+",
        type=_positive,
        metavar="N",
        help="limbs of the operands; default: six numbers, which are 27 24 20 13 8 4 of 27",
    )
    parser.add_argument("--rounds", type=_positive, default=5, metavar="K", help="calls of each; the fastest counts")
    parser.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="take the chain of a compiled program, and run it encrypted on every engine",
    )
    parser.add_argument("--no-primitives", action="store_true", help="run the program alone")
    parser.add_argument("--images", type=_positive, default=1, metavar="K", help="of the program's runs; default 1")
    parser.add_argument(
        "--program-rounds", type=_positive, default=1, metavar="K", help="runs on each engine; the fastest counts"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files; default: $OLAC_DATA")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep keys and ciphertexts there, for reuse")
    parser.add_argument("--force", action="store_true", help="run the program even if memory is too small")
    _add_rows(parser)
    parser.set_defaults(run=_engines, recipe=OPENFHE_RECIPE)


def _add_chain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ring", type=_positive, default=16, metavar="R", help="log2 of the ring dimension; default 16"
    )
    parser.add_argument("--scale", type=_positive, default=37, metavar="B", help="bits of the scale; default 37")
    parser.add_argument(
        "--first",
        type=_positive,
        default=41,
        metavar="B",
        help="bits of the first prime; default 41. The bits that it has more than the scale are the correction factor",
    )
    parser.add_argument(
        "--rest", type=_positive, default=9, metavar="L", help="levels that the bootstrap leaves; default 9"
    )
    parser.add_argument(
        "--budget", type=_pair, default=(4, 3), metavar="U,D", help="levels of the transforms up and down; default 4,3"
    )
    parser.add_argument("--digits", type=_positive, default=2, metavar="D", help="digits of key switching; default 2")
    parser.add_argument("--slots", type=_positive, metavar="S", help="log2 of the slots that differ; default: all")
    parser.add_argument("--threads", type=_positive, metavar="T", help="threads; default: all cores")
    parser.add_argument("--insecure", action="store_true", help="waive the check of security, for small rings")


def _examples(options: argparse.Namespace, command: str) -> int:
    return examples.run(options, Console(), command)


def _serving(options: argparse.Namespace, command: str) -> int:
    return serving.run(options, Console())


def _pair(text: str) -> tuple[int, int]:
    up, comma, down = text.partition(",")
    if not (comma and up.isdigit() and down.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers with a comma between them")
    return int(up), int(down)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _share(text: str) -> float:
    return float(text) if text in ("0", "1") else _fraction(text)


def _fraction(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _measurement(options: argparse.Namespace) -> Measurement:
    """The model, its images and how it is fitted, as the command line names them."""
    folder = data_folder(options.data)
    training, test = training_set(folder, options.calibration), test_set(folder, options.images)
    try:
        from benchmarks.accuracy import Measurement, load_model
    except ModuleNotFoundError as error:
        raise ResultsError(f"models need torch ({error}): pip install 'olac[torch]'") from error
    benchmark, model = load_model(options.model, options.weights)
    set_threads(options.threads)
    return Measurement(
        options.model,
        benchmark,
        model,
        training,
        test,
        options.images,
        options.calibration,
        options.effort,
        options.fit_seconds,
    )


def _accuracy(options: argparse.Namespace, command: str) -> int:
    # Check the whole command before anything is computed.
    strategies = parse_strategies(options.strategies)
    if options.plot is not None:
        require_plot(options.plot)
    measurement = _measurement(options)
    results = ResultsFile.open(options.json, command, options.append)
    from benchmarks.accuracy import run

    console = Console()
    rows, failed = run(measurement, strategies, results, console)
    _print(rows, console)
    if rows and options.plot is not None:
        plot(results.rows, options.plot)
    return 1 if failed else 0


def _finetune(options: argparse.Namespace, command: str) -> int:
    for path in (options.save, options.program):
        if path is not None and not path.parent.is_dir():
            raise ResultsError(f"the folder of {path} does not exist")
    measurement = _measurement(options)
    results = ResultsFile.open(options.json, command, options.append)
    from benchmarks import finetuning
    from olac.training.loop import TrainingOptions

    row = finetuning.run(
        measurement,
        options.epochs,
        TrainingOptions(rate=options.rate, mixed=options.mixed, labels=options.labels),
        results,
        Console(),
        weights=options.weights,
        module=options.save,
        program=options.program,
        precision=options.precision,
        threads=options.threads,
    )
    _print([row], Console())
    return 0


def _encrypted(options: argparse.Namespace, command: str) -> int:
    console = Console()
    if options.compare is None:
        encrypted.run(options, command, console)
        return 0
    rows = compare(options, command, console)
    _print(rows, console)
    return 0 if any(not row.get("infeasible") for row in rows) else 1


def _costs(options: argparse.Namespace, command: str) -> int:
    console = Console()
    _print(costs.run(options, command, console), console)
    return 0


def _bootstraps(options: argparse.Namespace, command: str) -> int:
    _print([bootstraps.run(options, command)], Console())
    return 0


def _throughput(options: argparse.Namespace, command: str) -> int:
    set_threads(options.threads)
    from benchmarks import throughput

    console = Console()
    rows = throughput.run(
        options.models,
        options.images,
        ResultsFile.open(options.json, command, options.append),
        console,
        ensembles=options.ensembles,
        engine=options.engine,
        weights=options.weights,
        data=options.data,
        threads=options.threads,
    )
    _print(rows, console)
    return 0


def _engines(options: argparse.Namespace, command: str) -> int:
    console = Console()
    _print(engines.run(options, command, console), console)
    return 0


def _print(rows: list[Row], console: Console) -> None:
    # In a file, lines may be as long as tables need.
    output = console if console.is_terminal else Console(width=WIDEST)
    for table in rich_tables(rows):
        output.print(table)


def _structure(options: argparse.Namespace, command: str) -> int:
    structure.run(options.models, Console())
    return 0


def _security(options: argparse.Namespace, command: str) -> int:
    return security.run(options)


def _models(options: argparse.Namespace, command: str) -> int:
    _print(models_command.run(options, command), Console())
    return 0


def _faults(options: argparse.Namespace, command: str) -> int:
    return faults_command.run(options, lambda line: print(line, file=sys.stderr, flush=True))


def _plot(options: argparse.Namespace, command: str) -> int:
    plot(read_rows(options.json), options.output)
    return 0


def _table(options: argparse.Namespace, command: str) -> int:
    print(markdown_table(read_rows(options.json)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
