"""The stages from a model to a program, in their order; events and log records name them."""

from __future__ import annotations

TRACING = "tracing the model"
CALIBRATING = "calibrating"
SIMPLIFYING = "simplifying the network"
MEASURING = "measuring activations"
CHOOSING = "choosing degrees"
FITTING = "fitting polynomials"
RECONSTRUCTING = "reconstructing"
TUNING = "fine-tuning"
CHECKING = "checking"
LOWERING = "choosing parameters"
STAGES = (CALIBRATING, SIMPLIFYING, MEASURING, CHOOSING, FITTING, RECONSTRUCTING, TUNING, CHECKING, LOWERING)
"""All but the first, which is over before anything is predicted."""
