"""The drawings of a page as figures of matplotlib, for MLflow, TensorBoard and papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from olac.errors import OlacError, plain
from olac.pages.data import Card, Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONG, SQUARE = (10.0, 3.0), (5.0, 3.2)
"""Inches of figures along the network, and of others."""


def figures(data: Data) -> dict[str, Figure]:
    """By name: "levels", "seconds", "memory", "precision" if it was measured, "plans" if degrees were searched, and
    "activation/NODE" for each activation with a curve.

    Raises:
        OlacError: matplotlib is missing.
    """
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise OlacError(f"figures need matplotlib ({plain(error)}): pip install 'olac[benchmarks]'") from error

    def new(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Any]:
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y)
        return figure, axes

    steps, found = data.steps, dict[str, "Figure"]()
    places = np.arange(len(steps))
    found["levels"], axes = new(ALONG, "node", "level")
    axes.step(places, [step.level for step in steps], where="mid")
    jumps = [i for i, step in enumerate(steps) if step.kind == "bootstrap"]
    if jumps:
        axes.plot(jumps, [steps[i].level for i in jumps], "o", label="bootstrap")
        axes.legend()
    found["seconds"], axes = new(ALONG, "node", "seconds")
    axes.bar(places - 0.2, [step.predicted for step in steps], 0.4, label="predicted")
    if data.has_measured:
        axes.bar(places + 0.2, [step.measured or 0.0 for step in steps], 0.4, label="measured")
    axes.legend()
    found["memory"], axes = new(ALONG, "node", "MB of ciphertexts alive")
    axes.fill_between(places, [step.alive / 1e6 for step in steps], step="mid", alpha=0.5)
    if data.has_errors:
        found["precision"], axes = new(ALONG, "node", "bits of precision")
        axes.plot(places, [np.nan if step.bits is None else step.bits for step in steps], ".-")
    if data.plans:
        agree = all(plan.agreement is not None for plan in data.plans)
        found["plans"], axes = new(SQUARE, data.price_name, "agreement" if agree else "change of the outputs")
        for plan in data.plans:
            axes.plot(plan.price, plan.agreement if agree else plan.cost, "s" if plan.chosen else "o", color="C0")
        if not agree:
            axes.set_yscale("log")
    for card in data.cards:
        if card.curve is not None:
            found[f"activation/{card.fit.node}"], axes = new(SQUARE, "input", card.fit.function)
            _draw(card, axes)
    return found


def _draw(card: Card, axes: Any) -> None:
    one = card.curve
    assert one is not None
    x = np.linspace(one.low, one.high, len(one.exact_low))
    low, high = min(one.exact_low), max(one.exact_high)
    room = 0.25 * ((high - low) or 1.0)
    axes.set_ylim(low - room, high + room)
    edges = np.linspace(one.seen_low, one.seen_high, len(one.shares) + 1)
    heights = 0.4 * (high - low + 2 * room) * np.sqrt(np.array(one.shares) / max(one.shares))
    axes.bar(edges[:-1], heights, np.diff(edges), low - room, align="edge", color="0.8")
    axes.fill_between(x, one.fitted_low, one.fitted_high, alpha=0.3, label=f"degree {one.degree}")
    axes.plot(x, one.fitted_low, "C0", linewidth=1)
    axes.plot(x, one.fitted_high, "C0", linewidth=1)
    axes.plot(x, one.exact_high, "k--", linewidth=1.2, label=one.function)
    axes.legend()
