"""The page of a program: HTML from plain data, with jinja2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olac.costs.table import CostTable
from olac.errors import OlacError, plain
from olac.pages import drawings
from olac.pages.data import Card, Data, Plan, costliest, gather
from olac.pages.record import AnyRecord, joined
from olac.pages.text import amount, byte_amount, duration, on_axis, share
from olac.program.artifact import olac_version
from olac.program.curves import Curves
from olac.program.program import CompiledProgram
from olac.system.files import write_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """A report of a program.

    Attributes:
        data: all that it shows.
    """

    data: Data

    @staticmethod
    def of(
        program: CompiledProgram,
        *,
        run: AnyRecord | Sequence[AnyRecord] | None = None,
        costs: CostTable | str | Path | None = None,
        curves: str | Path | None = None,
    ) -> Page:
        """The report of a program; arguments and errors are those of `CompiledProgram.html`."""
        known = program.curves if curves is None else Curves.load(curves, program.fingerprint)
        table = CostTable.load(costs) if isinstance(costs, str | Path) else costs
        return Page(gather(program, joined(run, program.fingerprint), table, known))

    def html(self) -> str:
        """The whole page."""
        return self._rendered("report.html")

    def snippet(self) -> str:
        """Its head and the levels along the network, for a page of others such as a notebook."""
        return self._rendered("snippet.html")

    def save(self, path: str | Path) -> None:
        """Write the page to a file that only its owner may read. ArtifactError if that fails."""
        data = self.html().encode()
        write_file(path, [data], private=True, size=len(data))

    def figures(self) -> dict[str, Figure]:
        """The drawings as figures of matplotlib, by name, for `mlflow.log_figure` or `SummaryWriter.add_figure`.

        Raises:
            OlacError: matplotlib is missing.
        """
        from olac.pages.figures import figures

        return figures(self.data)

    def _rendered(self, template: str) -> str:
        environment = _environment()
        from markupsafe import Markup

        style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
        plans = self.data.plans
        return environment.get_template(template).render(
            data=self.data,
            drawings=_drawn(self.data, Markup),
            style=style,
            costliest=costliest(self.data.steps),
            memory_rows=_memory_rows(self.data),
            plans_agree=_agree(plans),
            version=olac_version(),
        )


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise OlacError(f"reports need jinja2 ({plain(error)}): pip install 'jinja2>=3.1'") from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    environment.filters |= {"amount": amount, "share": share, "bytes": byte_amount, "duration": duration}
    environment.filters |= {"known": _known, "axis": on_axis}
    return environment


def _known(value: float | None) -> str:
    return "\u2013" if value is None else amount(value)


@dataclass(frozen=True)
class Both:
    """A drawing for a screen and for a phone."""

    wide: str
    narrow: str


def _drawn(data: Data, markup: Callable[[str], Any]) -> dict[str, Any]:
    """The drawings of a page by name; their text is escaped already, which `markup` tells the templates."""
    steps, plans, agree = data.steps, data.plans, _agree(data.plans)
    names = [step.name for step in steps]
    stops = [drawings.Stop(step.name, step.op, step.level, step.inputs, step.kind, step.tip) for step in steps]
    rows = [drawings.Bar(step.name, step.predicted, step.measured) for step in steps]
    alive, bits = [float(step.alive) for step in steps], [step.bits for step in steps]
    spots = [drawings.Spot(plan.price, _height(plan, agree), plan.chosen, _tip(plan)) for plan in plans]
    of_outputs = "agreement with the model" if agree else "change of the outputs"

    def both(draw: Callable[[float], str], wide: float = drawings.WIDE) -> Both:
        return Both(markup(draw(wide)), markup(draw(drawings.NARROW)))

    cards = ("" if card.curve is None else drawings.activation(_curves(card)) for card in data.cards)
    found: dict[str, Any] = {
        "activations": [markup(one) for one in cards],
        "timeline": both(lambda width: drawings.timeline(stops, width)),
        "bars": both(lambda width: drawings.bars(rows, width)),
        "memory": both(lambda width: drawings.memory_along(names, alive, width)),
        "stacks": both(lambda width: drawings.stacks(data.stacks, width)),
        "precision": both(lambda width: drawings.precision(names, bits, width)),
    }
    if plans:
        found["front"] = both(lambda width: drawings.front(spots, data.price_name, of_outputs, agree, width), 760.0)
    return found


def _curves(card: Card) -> drawings.Curves:
    one = card.curve
    assert one is not None
    return drawings.Curves(
        one.node,
        one.function,
        one.low,
        one.high,
        one.seen_low,
        one.seen_high,
        one.shares,
        one.exact_low,
        one.exact_high,
        one.fitted_low,
        one.fitted_high,
    )


def _agree(plans: Sequence[Plan]) -> bool:
    """Whether plans are drawn by their agreement, because all have one."""
    return all(plan.agreement is not None for plan in plans)


def _height(plan: Plan, agree: bool) -> float:
    return plan.agreement if agree and plan.agreement is not None else plan.cost


def _tip(plan: Plan) -> str:
    told = "" if plan.agreement is None else f", agreement {share(plan.agreement)}"
    return f"degrees {', '.join(map(str, plan.degrees))}: {on_axis(plan.price)}{told}{', taken' if plan.chosen else ''}"


def _memory_rows(data: Data) -> list[Mapping[str, Any]]:
    """One row for each purpose, with the bytes of each process."""
    names = [part.name for part in data.stacks[0].parts]
    parts = [[stack.parts[i] for stack in data.stacks] for i in range(len(names))]
    return [
        {"name": " / ".join(dict.fromkeys(part.name for part in row)), "sizes": [part.size for part in row]}
        for row in parts
    ]
