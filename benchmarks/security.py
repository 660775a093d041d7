"""What the lattice estimator says about the bounds of security, and about moduli between and beyond them.

`olac.ckks.security` sets a largest modulus for every ring and secret and interpolates between these. This computes the
cost of the cheapest known attack at each of them (tests/ckks_security.json), and a test compares. The estimator is not
a dependency: `INSTALL` says how to get it. Its own searches take hours at large rings and for sparse secrets, so most
of its cost functions are minimised here, by descent from several starts.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincc, erf, gammaln

from olac.ckks.parameters import ENCAPSULATION_WEIGHT, SPARSE_WEIGHT
from olac.ckks.security import EARLIER_SECURITY_BOUNDS, ENCAPSULATION_BOUNDS, SECURITY_BOUNDS, SPARSE_SECURITY_BOUNDS

REPOSITORY = "https://github.com/malb/lattice-estimator"
INSTALL = f"""the lattice estimator can't be imported. In an environment of its own, with Python 3.12:
    pip install passagemath-standard-no-symbolics passagemath-symbolics
    git clone {REPOSITORY}
and then, in that environment and from this folder: python -m benchmarks.security --estimator lattice-estimator ..."""
MODEL = "RC.MATZOV, GSA"
"""The model of lattice reduction: of the classical models in the guidelines, the one with the lower costs."""
SIGMA = 3.19
"""Standard deviation of the errors, as OpenFHE draws them."""
DENSE, SPARSE, ENCAPSULATED = "ternary", "sparse", "encapsulated"
WEIGHTS = {DENSE: None, SPARSE: SPARSE_WEIGHT, ENCAPSULATED: ENCAPSULATION_WEIGHT}
BLOCK_SIZES = (80, 130, 180, 240, 300)
"""Block sizes from which searches for attacks on sparse secrets start."""
SHARES = (0.1, 0.25, 0.45, 0.7)
"""Shares of the weight that are expected among the guessed coordinates, from which they start, too."""
KEPT_SHARES = (0.92, 0.85, 0.78, 0.7, 0.6, 0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.065, 0.045)
"""Shares of the coordinates that are not guessed, from which they start, too."""
WITHIN = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Positions between two bounds at which there is an estimate, in 1 / log2(q)."""
BEYOND = (1.05, 1.1, 1.25, 1.5, 2.0, 3.0)
"""Multiples of the bound of 128 bits at which there is an estimate."""


class EstimatorError(Exception):
    """The lattice estimator can't be imported."""


@dataclass(frozen=True)
class Point:
    """A ring, a secret and a modulus."""

    secret: str
    log_ring: int
    log_q: int


def points() -> list[Point]:
    """All points that are estimated, the bounds first."""
    found = [Point(SPARSE, ring, q) for ring, q in SPARSE_SECURITY_BOUNDS[128].items()]
    found += [Point(ENCAPSULATED, ring, q) for ring, q in ENCAPSULATION_BOUNDS[128].items()]
    for tables in (SECURITY_BOUNDS, EARLIER_SECURITY_BOUNDS):
        found += [Point(DENSE, ring, q) for bounds in tables.values() for ring, q in bounds.items()]
    for ring, loosest in SECURITY_BOUNDS[128].items():
        bounds = sorted(table[ring] for table in SECURITY_BOUNDS.values() if ring in table)
        for low, high in itertools.pairwise(bounds):
            found += [Point(DENSE, ring, round(1 / ((1 - x) / low + x / high))) for x in WITHIN]
        found += [Point(DENSE, ring, round(loosest * factor)) for factor in BEYOND]
    return list(dict.fromkeys(found))


def descend(cost: Callable[..., float], start: Sequence[int], steps: Sequence[int], lows: Sequence[int]) -> float:
    """The least cost that steps along single coordinates reach; steps are halved when none helps.

    Args:
        start, steps: of each coordinate.
        lows: smallest value of each coordinate.
    """
    known: dict[tuple[int, ...], float] = {}

    def at(x: tuple[int, ...]) -> float:
        if any(value < low for value, low in zip(x, lows, strict=True)):
            return math.inf
        if x not in known:
            known[x] = cost(*x)
        return known[x]

    best, width = tuple(start), list(steps)
    while any(width):
        moved = False
        for i, step in enumerate(width):
            for sign in (-1, 1) if step else ():
                x = (*best[:i], best[i] + sign * step, *best[i + 1 :])
                while at(x) < at(best):
                    best, moved = x, True
                    x = (*best[:i], best[i] + sign * step, *best[i + 1 :])
        if not moved:
            width = [step // 2 for step in width]
    return at(best)


def guesses(n: int, h: int, zeta: int, most: int) -> tuple[float, float]:
    """How many ternary vectors of zeta coordinates have at most `most` nonzero ones, and how likely the guessed part of
    a secret of weight h is one of them.
    """
    i = np.arange(most + 1)

    def choose(total: Any, taken: Any) -> Any:
        return gammaln(total + 1) - gammaln(taken + 1) - gammaln(total - taken + 1)

    space = choose(zeta, i) + i * math.log(2)
    hit = choose(zeta, i) + choose(n - zeta, h - i) - choose(n, h) if most else choose(n - zeta, h) - choose(n, h)
    with np.errstate(over="ignore"):
        return float(np.exp(space).sum()), min(1.0, float(np.exp(hit).sum()))


def _use_numpy(estimator: Any, primal: Any, exactly: Any) -> None:
    """Replace the estimator's inner loops over all vectors of a basis by numpy: the same formulas, much faster.

    Args:
        exactly: the estimator's type of real numbers, whose exponents are not bounded.
    """

    def geometric_series(
        d: int, n: int, q: int, beta: int, xi: Any = 1, tau: Any = 1, dual: bool = False
    ) -> np.ndarray[Any, Any]:
        volume = float(primal.log(q, 2)) * (d - n - bool(tau)) + math.log2(xi) * n + (math.log2(tau) if tau else 0.0)
        norms = (d - 1 - 2 * np.arange(d)) * math.log2(estimator.reduction.delta(beta)) + volume / d
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.exp2(2 * norms))

    def product(factors: np.ndarray[Any, Any]) -> Any:
        with np.errstate(divide="ignore"):
            log = float(np.log2(factors).sum())
        return exactly(2) ** exactly(log) if math.isfinite(log) else exactly(0)

    def babai(r: np.ndarray[Any, Any], norm: float) -> Any:
        inside = np.clip(1 - r / float(2 * norm) ** 2, 0, 1)
        return product(betaincc((len(r) - 1) / 2, 0.5, inside)) if len(r) > 1 else exactly(1)

    def meeting(r: np.ndarray[Any, Any], stddev: float, fast: bool = False) -> Any:
        x = np.maximum(np.sqrt(0.5 * r) / float(stddev), 1e-300)
        with np.errstate(over="ignore"):
            return product(np.maximum(erf(x) + np.expm1(-(x**2)) / (x * math.sqrt(math.pi)), 0.0))

    def dimension(d: int, log_total_vol: Any, log_delta: Any, errors: Any, is_homogeneous: bool = False) -> Any:
        i = np.arange(d - 1754 if d > 4096 else 0, d, dtype=float)
        log_vol = 2 * ((d - i) / d * float(log_total_vol) - i * (d - i) * float(log_delta))
        n, stddev = d - i, float(errors.stddev)
        bound = stddev**2 * (d - i)
        if not is_homogeneous:
            n, log_vol, bound = n + 1, log_vol + 2 * math.log(stddev), bound + stddev**2
        balls = n / 2 * math.log(math.pi) - gammaln(n / 2 + 1)
        short = np.flatnonzero((log_vol - 2 * balls) / n < np.log(bound))
        return estimator.lwe_primal.ZZ(d - (int(i[short[0]]) - 1) + (not is_homogeneous) if len(short) else 2)

    for given in ((600, 300, exactly(2) ** 20, 60), (2400, 2290, exactly(2) ** 1100, 60)):
        was, now = primal.GSA(*given, tau=False), geometric_series(*given, tau=False)
        assert np.allclose(np.array(was, dtype=float), now, rtol=1e-9)
        assert math.isclose(primal.prob_babai(was, 700.0), babai(now, 700.0), rel_tol=1e-6)
        assert math.isclose(primal.mitm_babai_probability(was, 3.0), meeting(now, 3.0), rel_tol=1e-6)
    errors = estimator.ND.DiscreteGaussian(3.0)
    for volume in (1500.0, 2500.0, 4000.0):
        asked = (600, volume, math.log(estimator.reduction.delta(60)), errors)
        assert primal.PrimalHybrid.svp_dimension_gsa(*asked) == dimension(*asked)
    sparse = estimator.ND.SparseTernary(16, 16, 600)
    for zeta, most in ((100, 3), (400, 20)):
        exact = estimator.prob.guessing_set_and_hit_probability(zeta, sparse, most)
        assert np.allclose(np.array(exact, dtype=float), guesses(600, 32, zeta, most), rtol=1e-6)
    primal.GSA = estimator.simulator.GSA = geometric_series
    primal.prob_babai, primal.mitm_babai_probability = babai, meeting
    primal.PrimalHybrid.svp_dimension_gsa = staticmethod(dimension)


class Estimator:
    """The lattice estimator, from a folder or from where Python finds it."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            sys.path.insert(0, str(folder))
        try:
            import estimator
            from estimator import lwe_dual, lwe_guess, lwe_primal
        except ImportError as error:
            raise EstimatorError(f"{INSTALL}\n({error})") from error
        self._all, self._primal, self._dual, self._guess = estimator, lwe_primal, lwe_dual, lwe_guess
        self._model = estimator.RC.MATZOV
        _use_numpy(estimator, lwe_primal, lwe_primal.RR)
        self._real = lwe_primal.RR
        lwe_dual.pi, lwe_dual.e = self._real(lwe_dual.pi), self._real(lwe_dual.e)  # numbers, no symbols
        # The estimator's own searches do this, too; here its cost functions are called without them.
        lasting = dict.fromkeys(("mem", "beta", "delta", "d", "zeta", "t", "h1", "k"), False)
        estimator.cost.Cost.register_impermanent(rop=True, red=True, m=True, **lasting)
        where = Path(estimator.__file__).parent
        asked = subprocess.run(["git", "-C", where, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        self.commit = asked.stdout.strip()

    def estimate(self, point: Point) -> dict[str, float]:
        """log2 of the word operations of each attack; the secret has as many coordinates as the ring."""
        e, weight = self._all, WEIGHTS[point.secret]
        n = 1 << point.log_ring
        secret = e.ND.UniformMod(3) if weight is None else e.ND.SparseTernary(weight // 2, weight // 2, n)
        given = e.LWE.Parameters(
            n=n, q=self._real(2) ** point.log_q, Xs=secret, Xe=e.ND.DiscreteGaussian(SIGMA), m=math.inf
        ).normalize()
        usvp = e.LWE.primal_usvp(given, red_cost_model=self._model, red_shape_model="gsa")
        beta = int(usvp.get("beta", 1000))
        costs = {
            "usvp": _log2(usvp),
            "bdd": descend(lambda b: self._hybrid(given, b, 0, 0, False), (beta,), (4,), (40,)),
            "dual": _log2(e.LWE.dual(given, red_cost_model=self._model)),
            "dual_hybrid": self._matzov(given, beta),
        }
        if weight is not None:
            costs["bdd_hybrid"] = self._guessing(given, lambda b, z, w: self._hybrid(given, b, z, w, False))
            costs["bdd_mitm_hybrid"] = self._guessing(given, lambda b, z, w: self._hybrid(given, b, z, w, True))
            costs["dual_mitm_hybrid"] = self._guessing(given, lambda b, z, w: self._sparse(given, b, z, w))
        return {name: round(cost, 2) for name, cost in costs.items() if math.isfinite(cost)}

    def _guessing(self, given: Any, cost: Callable[[int, int, int], float]) -> float:
        """The least cost of an attack that guesses coordinates of a sparse secret.

        Block size and weight are searched anew for each number of guessed coordinates, as the three depend on each
        other.

        Args:
            cost: as a function of the block size, the number of guessed coordinates and the number of nonzero ones.
        """
        weight, known = int(given.Xs.hamming_weight), {}

        def at(kept: int, beta: int, most: int) -> float:
            zeta = given.n - kept
            if not (0 < zeta < given.n and 0 < most <= min(zeta, weight)):
                return math.inf
            if (kept, beta, most) not in known:
                known[kept, beta, most] = cost(beta, zeta, most)
            return known[kept, beta, most]

        def start(kept: int) -> tuple[float, int, int]:
            expected = weight * (1 - kept / given.n)
            tried = itertools.product(BLOCK_SIZES, (max(1, round(share * expected)) for share in SHARES))
            return min((at(kept, *one), *one) for one in tried)

        def least(kept: int) -> float:
            return descend(lambda beta, most: at(kept, beta, most), start(kept)[1:], (16, 4), (40, 1))

        best = sorted((round(given.n * share) for share in KEPT_SHARES), key=start)[:2]
        first = min(best, key=least)
        step = first // 16
        while step > first // 200:
            first = min((first - step, first, first + step), key=least)
            step //= 2
        return min(known.values())

    def _hybrid(self, given: Any, beta: int, zeta: int, weight: int, mitm: bool) -> float:
        """The primal attack, with or without meeting in the middle of the guessed coordinates."""
        space, hit = guesses(given.n, int(given.Xs.hamming_weight), zeta, weight)
        return _log2(
            self._primal.PrimalHybrid.cost(
                beta=beta,
                params=given,
                zeta=zeta,
                babai=mitm,
                mitm=mitm,
                m=given.m + given.n,
                red_shape_model=self._primal.GSA,
                red_cost_model=self._model,
                search_space=space,
                hit_probability=hit,
            )
        )

    def _matzov(self, given: Any, beta: int) -> float:
        """The dual attack of MATZOV with a fast Fourier transform: block size, modulus, its and guessed coordinates."""

        def cost(beta: int, p: int, fft: int, guessed: int) -> float:
            found = self._dual.MATZOV.cost(beta, given, p=p, k_fft=fft, k_enum=guessed, red_cost_model=self._model)
            return _log2(found)

        return descend(cost, (beta, 3, 60, 0), (8, 1, 16, 8), (40, 2, 0, 0))

    def _sparse(self, given: Any, beta: int, zeta: int, weight: int) -> float:
        """The dual attack that meets in the middle of the guessed coordinates."""
        return _log2(
            self._dual.DualHybrid.cost(
                solver=self._guess.mitm,
                params=given,
                beta=beta,
                zeta=zeta,
                h1=weight,
                red_cost_model=self._model,
                log_level=5,
            )
        )


def _log2(cost: Any) -> float:
    value = cost["rop"]
    return math.inf if value == math.inf else math.log2(value)


def _row(point: Point, costs: dict[str, float]) -> dict[str, Any]:
    return {**vars(point), "bits": min(costs.values()), "costs": costs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command line."""
    parser.add_argument("--estimator", type=Path, metavar="DIR", help="a checkout of the lattice estimator")
    parser.add_argument("--commit", help="commit of the estimator, if the folder is no git checkout")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the estimates go")
    parser.add_argument("--append", action="store_true", help="keep the estimates that the file has already")
    parser.add_argument("--rings", type=int, nargs="+", metavar="R", help="log2 of ring dimensions; default: all")
    parser.add_argument("--secrets", choices=list(WEIGHTS), nargs="+", metavar="S", help=", ".join(WEIGHTS))


def run(options: argparse.Namespace) -> int:
    """Estimate, and write all estimates after each one.

    Raises:
        EstimatorError: the estimator can't be imported; says how to install it.
    """
    estimator = Estimator(options.estimator)
    known: dict[Point, Any] = {}
    if options.append and options.json.exists():
        for row in json.loads(options.json.read_text())["estimates"]:
            known[Point(row["secret"], row["log_ring"], row["log_q"])] = row["costs"]
    head = {
        "estimator": REPOSITORY,
        "commit": options.commit or estimator.commit,
        "model": MODEL,
        "sigma": SIGMA,
        "samples": "unbounded",
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.security --estimator lattice-estimator --json tests/ckks_security.json",
    }
    rings, secrets = options.rings or range(18), options.secrets or list(WEIGHTS)
    wanted = [p for p in points() if p.log_ring in rings and p.secret in secrets]
    for point in (p for p in wanted if p not in known):
        known[point] = estimator.estimate(point)
        print(json.dumps(_row(point, known[point])), flush=True)
        done = [_row(p, known[p]) for p in sorted(known, key=lambda p: (p.secret, p.log_ring, p.log_q))]
        lines = ",\n  ".join(json.dumps(one) for one in done)
        fields = "".join(f' "{name}": {json.dumps(value)},\n' for name, value in head.items())
        options.json.write_text("{\n" + fields + ' "estimates": [\n  ' + lines + "\n ]\n}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """As `python -m benchmarks security`, for an environment that has the estimator but not what the others need."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.security", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except EstimatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
