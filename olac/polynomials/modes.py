"""How activations become polynomials, as types: a method of fitting and a choice of degrees, each with its options.

Users give keywords (`FitOptions`), or one of these types in place of a string. Passes see only the types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

from olac.polynomials.minimax import DEGREES as PRECISIONS
from olac.system.choices import require_one_of

MAX_DEGREE = 127
MIN_AGREEMENT = 0.98
"""The agreement that is aimed at if a caller gives neither a limit nor an agreement."""
MINIMAX_PADDING = 1.3
"""The range of compositions over the calibrated one; beyond it they grow without bound."""

MethodName = Literal["compensated", "channel", "empirical", "normal", "minimax", "quadratic"]
Effects = Literal["measured", "ola"]
EffortName = Literal["fast", "standard", "thorough"]


@dataclass(frozen=True)
class Effort:
    """How much is spent on reconstruction.

    Attributes:
        images: most calibration images that are kept for fits.
        visits: about how many images all passes together take, each image counted as often as it is taken.
        passes: least and most passes over the images.
    """

    images: int
    visits: int
    passes: tuple[int, int]

    def passes_over(self, images: int) -> int:
        """Passes over this many images."""
        least, most = self.passes
        return min(most, max(least, round(self.visits / max(1, images))))


EFFORTS: Mapping[EffortName, Effort] = {
    "fast": Effort(1024, 4 << 10, (2, 4)),
    "standard": Effort(1024, 16 << 10, (4, 16)),
    "thorough": Effort(1 << 16, 320 << 10, (6, 40)),
}
"""By what `effort` says."""

_Rule: TypeAlias = tuple[Callable[[Any], bool], str]
_DEGREE: _Rule = (lambda v: 1 <= v <= MAX_DEGREE, f"is outside 1 ... {MAX_DEGREE}")
_POSITIVE: _Rule = (lambda v: v > 0, "is not positive")
_NOT_NEGATIVE: _Rule = (lambda v: v >= 0, "is negative")

RULES: Mapping[str, _Rule] = {
    "degree": _DEGREE,
    "max_degree": _DEGREE,
    "plan": (lambda v: all(1 <= d <= MAX_DEGREE for d in v), f"has a degree outside 1 ... {MAX_DEGREE}"),
    "max_depth": (lambda v: v >= 1, "is below 1"),
    "max_bootstraps": _NOT_NEGATIVE,
    "max_latency": _POSITIVE,
    "min_agreement": (lambda v: 0 < v <= 1, "is outside 0 ... 1"),
    "tolerance": _POSITIVE,
    "r": _POSITIVE,
    "floor": (lambda v: 0 < v < 1, "is outside 0 ... 1"),
    "padding": (lambda v: v >= 1, "is below 1"),
    "ridge": _NOT_NEGATIVE,
    "alpha": (lambda v: v in PRECISIONS, f"is outside {min(PRECISIONS)} ... {max(PRECISIONS)}"),
    "reconstruct": _NOT_NEGATIVE,
    "fit_seconds": _POSITIVE,
}
"""By keyword: the test of its values, and the message if it fails."""


def _check(name: str, keyword: str, value: Any) -> None:
    if keyword == "method":
        require_one_of(name, value, METHODS)
    elif keyword == "degrees":
        require_one_of(name, value, get_args(Effects))
    elif keyword == "effort":
        require_one_of(name, value, EFFORTS)
    elif value is not None and keyword in RULES:
        passes, problem = RULES[keyword]
        try:
            right = passes(value)
        except TypeError as error:  # a value that can't be compared, such as a string
            raise TypeError(
                f"{name} is {value!r}, and {'numbers are' if name == 'plan' else 'a number is'} needed"
            ) from error
        if not right:
            raise ValueError(f"{name} {value} {problem}")


@dataclass(frozen=True)
class _Mode:
    """A method or a choice of degrees; its options are keywords of `FitOptions`, some by the name in `keywords`."""

    keywords: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for option in fields(self):
            if getattr(self, option.name) is None and option.default is not None:
                raise ValueError(f"{option.name} is None")
        for name, keyword in self.all_keywords().items():
            _check(name, keyword, getattr(self, name))

    @classmethod
    def all_keywords(cls) -> dict[str, str]:
        """The keyword of each option."""
        return {field.name: cls.keywords.get(field.name, field.name) for field in fields(cls)}


# Methods of fitting --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Tails(_Mode):
    """Fits that also count errors beyond the calibrated range: a share of the mass is spread over a padded range.

    Attributes:
        floor: that share; None chooses one.
        padding: the factor by which the calibrated range is widened about its middle; None chooses one.
    """

    floor: float | None = None
    padding: float | None = None

    def tails(self, degree: int) -> tuple[float, float]:
        """Floor and padding as given, or the defaults for a degree: higher degrees need more of both."""
        floor, padding = (1e-4, 1.2) if degree <= 3 else (1e-3, 1.4)
        return (floor if self.floor is None else self.floor, padding if self.padding is None else self.padding)


@dataclass(frozen=True, kw_only=True)
class Compensated(_Tails):
    """One polynomial for each channel, in network order, compensating the errors of earlier layers.

    The method is olac's own. Convolutions and linear layers are re-fitted by ridge regression, and then everything is
    improved by gradients towards the model's own values, without labels (docs/strategies.md).

    Attributes:
        ridge: pull of re-fitted weights to the trained ones, in units of the inputs' mean square; None chooses one.
        refit: whether convolutions and linear layers are fitted again as well, in closed form and without labels.
        effort: how many images are kept and how many passes are made for the reconstruction that follows, in which all
            coefficients and weights are improved together towards the model's own values: "fast" (1,024 images, 4
            passes), "standard" (1,024 images, 16 passes) or "thorough" (as many images as the loader has, up to 65,536
            or 2 GB; 6 to 40 passes).
        reconstruct: passes of the reconstruction; None for those of `effort`, 0 for no reconstruction.
        fit_seconds: seconds after which the reconstruction ends at the latest; None for no limit.
    """

    ridge: float | None = None
    refit: bool = True
    effort: EffortName = "standard"
    reconstruct: int | None = None
    fit_seconds: float | None = None

    def passes_over(self, images: int) -> int:
        """Passes of the reconstruction over this many images.

        Args:
            images: calibration images that are kept for fits.
        """
        return EFFORTS[self.effort].passes_over(images) if self.reconstruct is None else self.reconstruct


@dataclass(frozen=True, kw_only=True)
class Channel(_Tails):
    """One polynomial for each channel: least squares under the channel's histogram of calibration values."""


@dataclass(frozen=True, kw_only=True)
class Empirical(_Tails):
    """One polynomial for each layer: least squares under the layer's histogram of calibration values."""


@dataclass(frozen=True)
class Normal(_Tails):
    """One polynomial for each layer, under a normal density with the layer's mean and spread.

    This is the fit of OLA (Lee et al., "Optimized layerwise approximation", arXiv 2310.10349), as far as its abstract
    and secondary sources describe it; the definition of `r` is olac's reconstruction.

    Attributes:
        r: the density is r times as wide as the layer's own: larger is safer in the tails, smaller is closer in the
            middle.
    """

    r: float = 2.0


@dataclass(frozen=True)
class Minimax(_Mode):
    """Compositions of minimax polynomials, for ReLU, LeakyReLU and PReLU: x (1 + sign(x)) / 2 with a composed sign.

    The method and the degrees are those of Lee et al., "Precise approximation of convolutional neural networks for
    homomorphically encrypted data", arXiv 2105.10879.

    Attributes:
        alpha: errors are at most 2^-alpha of the range.
        padding: the factor by which the calibrated magnitude is widened.
    """

    alpha: int = 10
    padding: float = MINIMAX_PADDING


@dataclass(frozen=True, kw_only=True)
class Quadratic(_Tails):
    """The fixed quadratic 0.234375 x^2 + 0.5 x + 0.1875, stretched from [-2, 2] to the layer's range; for ReLU.

    The polynomial is that of Chielle et al., arXiv 2509.22857, whose networks are trained with it.
    """


FromHistograms: TypeAlias = Compensated | Channel | Empirical | Normal | Quadratic
"""Methods that can fit to a histogram alone; for `Compensated` that is a quick fit, as of `Channel`."""
Method: TypeAlias = FromHistograms | Minimax

METHODS: Mapping[MethodName, type[Method]] = {
    "compensated": Compensated,
    "channel": Channel,
    "empirical": Empirical,
    "normal": Normal,
    "minimax": Minimax,
    "quadratic": Quadratic,
}


# Choices of degrees --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed(_Mode):
    """One degree for all activations.

    Attributes:
        degree: from 1 to 127.
    """

    degree: int


@dataclass(frozen=True)
class Plan(_Mode):
    """One degree for each activation, in network order.

    Attributes:
        degrees: from 1 to 127 each; as many as the model has activations.
    """

    degrees: tuple[int, ...]
    keywords: ClassVar[Mapping[str, str]] = {"degrees": "plan"}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "degrees", tuple(self.degrees))


@dataclass(frozen=True)
class Tolerance(_Mode):
    """For each activation by itself the least degree whose root mean square error is within `rmse`.

    Attributes:
        rmse: relative to the root mean square of the function's values.
        max_degree: largest degree that is considered; None for 15.
    """

    rmse: float
    max_degree: int | None = None
    keywords: ClassVar[Mapping[str, str]] = {"rmse": "tolerance"}

    @property
    def most(self) -> int:
        """The largest degree that is considered."""
        return 15 if self.max_degree is None else self.max_degree


@dataclass(frozen=True, kw_only=True)
class _Searched(_Mode):
    """Degrees that a dynamic program finds by the effect of each on the outputs.

    Attributes:
        effects: "measured", or "ola" for alpha_i E_i.
        max_degree: largest degree that is considered; None for 7 if effects are measured (beside low degrees, higher
            ones make more unseen images diverge than they gain in accuracy), and for 31 with "ola".
    """

    effects: Effects = "measured"
    max_degree: int | None = None
    keywords: ClassVar[Mapping[str, str]] = {"effects": "degrees"}

    @property
    def most(self) -> int:
        """The largest degree that is considered."""
        if self.max_degree is not None:
            return self.max_degree
        return 31 if self.effects == "ola" else 7


@dataclass(frozen=True, kw_only=True)
class Within(_Searched):
    """The most accurate degrees within one limit, by a dynamic program over activations.

    Give exactly one of `levels`, `seconds` and `bootstraps`. With effects="ola" the program minimises the variance of
    the loss, as in arXiv 2310.10349; with "measured" it adds up what each polynomial does to the outputs.

    Attributes:
        levels: the sum of the levels of all activations.
        seconds: predicted seconds of all polynomials, by the table of costs.
        bootstraps: of the whole program.
        min_agreement: an agreement that the plan must reach as well; None for no such limit.
    """

    levels: int | None = None
    seconds: float | None = None
    bootstraps: int | None = None
    min_agreement: float | None = None
    keywords: ClassVar[Mapping[str, str]] = {
        **_Searched.keywords,
        "levels": "max_depth",
        "seconds": "max_latency",
        "bootstraps": "max_bootstraps",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(limit is not None for limit in (self.levels, self.seconds, self.bootstraps)) != 1:
            raise ValueError("give one limit: levels, seconds or bootstraps")

    @property
    def limit(self) -> float:
        """The number of levels, seconds or bootstraps."""
        (limit,) = (one for one in (self.levels, self.seconds, self.bootstraps) if one is not None)
        return limit


@dataclass(frozen=True)
class Agreement(_Searched):
    """The degrees of fewest bootstraps, or of fewest levels without any, with a given agreement after the whole fit.

    If effects are measured and no `max_degree` is given, degrees up to 15 are considered if those up to 7 do not do.

    Attributes:
        share: the agreement on unseen calibration images; if no plan has it, compilation fails. None aims at
            `MIN_AGREEMENT` and takes the best plan if none has it.
    """

    share: float | None = None
    keywords: ClassVar[Mapping[str, str]] = {**_Searched.keywords, "share": "min_agreement"}

    @property
    def further(self) -> int | None:
        """The largest degree that is considered if those up to `most` are not enough; None for no such."""
        return 15 if self.max_degree is None and self.effects == "measured" else None


Told: TypeAlias = Fixed | Plan | Tolerance
Searched: TypeAlias = Within | Agreement
Degrees: TypeAlias = Told | Searched


# Keywords ------------------------------------------------------------------------------------------------------------

M = TypeVar("M", bound=_Mode)


@dataclass(frozen=True)
class FitOptions:
    """The keywords of a method of fitting and of a choice of degrees.

    In place of a string, `method` takes one of this module's methods, such as `Minimax(alpha=7)`, and `degrees` one of
    its choices, such as `Within(levels=20)`. These have all their options themselves, so their keywords must not be
    given beside them. They become strings and keywords here. Keywords that the method or the choice does not have are
    ignored.

    Attributes:
        method: "compensated" (the default), "channel", "empirical", "normal", "minimax" or "quadratic".
        degree: one degree for all activations; None lets `degrees` or `tolerance` choose.
        plan: one degree for each activation, in network order; nothing is chosen then.
        degrees: how degrees are chosen: "measured" (by the effect of each on the outputs) or "ola" (alpha_i E_i).
        max_depth: largest sum of the levels of all activations.
        max_bootstraps: most bootstraps of the whole program; the most accurate degrees within that are chosen. Lowering
            keeps to it, unless `max_memory` leaves it no choice.
        min_agreement: least agreement on unseen calibration images, such as the share on which the largest output stays
            the same; the cheapest plan that has it is chosen. 0.98 if neither this nor a limit is given.
        max_latency: most predicted seconds of all polynomials, by the table of costs.
        tolerance: see `Tolerance.rmse`.
        max_degree: see `Tolerance` and `Within`.
        r: see `Normal`.
        floor, padding: see `Compensated`; `Minimax` has a padding of its own.
        ridge, refit, effort, reconstruct, fit_seconds: see `Compensated`.
        alpha: see `Minimax`.
    """

    method: MethodName | Method = "compensated"
    degree: int | None = None
    plan: tuple[int, ...] | None = None
    degrees: Effects | Degrees = "measured"
    max_depth: int | None = None
    max_bootstraps: int | None = None
    min_agreement: float | None = None
    max_latency: float | None = None
    tolerance: float | None = None
    max_degree: int | None = None
    r: float = 2.0
    floor: float | None = None
    padding: float | None = None
    ridge: float | None = None
    alpha: int = 10
    refit: bool = True
    effort: EffortName = "standard"
    reconstruct: int | None = None
    fit_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.plan is not None:  # it may be an array, which has no plain comparison
            object.__setattr__(self, "plan", tuple(self.plan))
        given = {name: getattr(self, name) for name in KEYWORDS if getattr(self, name) != KEYWORDS[name]}
        for name, value in spelled_out(given).items():
            object.__setattr__(self, name, value)
        for name in KEYWORDS:
            _check(name, name, getattr(self, name))
        if self.plan is not None and self.degree is not None:
            raise ValueError("give degree or plan, not both")
        limits = self._limits()
        if len(limits) > 1:
            raise ValueError(f"give {' or '.join(limits)}, not both")

    def _limits(self) -> list[str]:
        return [n for n in ("max_depth", "max_latency", "max_bootstraps") if getattr(self, n) is not None]

    def _as(self, mode: type[M]) -> M:
        found = {name: getattr(self, keyword) for name, keyword in mode.all_keywords().items()}
        return mode(**{name: value for name, value in found.items() if value is not None})

    @property
    def fitting(self) -> Method:
        """The method, with its options."""
        assert isinstance(self.method, str)
        return self._as(METHODS[self.method])

    @property
    def choice(self) -> Degrees:
        """The choice of degrees, with its options. If keywords ask for several, the first of those below."""
        if self.plan is not None:
            return self._as(Plan)
        if self.degree is not None:
            return self._as(Fixed)
        if self.tolerance is not None:
            return self._as(Tolerance)
        return self._as(Within) if self._limits() else self._as(Agreement)


KEYWORDS: Mapping[str, Any] = {field.name: field.default for field in fields(FitOptions)}
"""The keywords and their defaults."""
_OF_METHODS = frozenset(n for method in METHODS.values() for n in method.all_keywords().values())
_OF_DEGREES = frozenset(KEYWORDS) - _OF_METHODS - {"method"}


def spelled_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords in which types are replaced by strings and the keywords of their options.

    Raises:
        ValueError: a keyword stands beside a type that has it, or with which it means nothing.
    """
    made = dict(given)
    for name, kind, theirs in (("method", Method, _OF_METHODS), ("degrees", Degrees, _OF_DEGREES)):
        mode = given.get(name)
        if not isinstance(mode, get_args(kind)):
            continue
        # A limit on the program and an aim may stand beside degrees that are given.
        owned = theirs - {"max_bootstraps", "min_agreement"} if isinstance(mode, get_args(Told)) else theirs
        beside = sorted((owned & set(given)) - {name})
        if beside:
            raise ValueError(f"{' and '.join(beside)} can't stand beside {name}={mode}, which has all options itself")
        made |= {one: KEYWORDS[one] for one in owned}
        made |= {keyword: getattr(mode, field) for field, keyword in type(mode).all_keywords().items()}
        if name == "method":
            (made["method"],) = (known for known, method in METHODS.items() if method is type(mode))
    return made
