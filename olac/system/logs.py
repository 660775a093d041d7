"""olac's log records: events with named fields, for services.

All loggers are below "olac". Fields are names, counts, sizes and seconds; values of inputs, outputs, keys and weights
are never logged. `olac.serving.logs.JsonFormatter` writes a record with its fields as a line of JSON.
"""

from __future__ import annotations

import logging
import warnings

FIELDS = "olac_fields"
"""The attribute of a record that holds its fields, a dict."""


def event(log: logging.Logger, message: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields."""
    if log.isEnabledFor(level):
        log.log(level, message, extra={FIELDS: fields})


def warn(log: logging.Logger, message: str, *, stacklevel: int = 2, **fields: object) -> None:
    """Warn the caller as Python does, and log the same.

    Args:
        stacklevel: as of `warnings.warn`, of the function that calls this.
    """
    event(log, message, level=logging.WARNING, **fields)
    warnings.warn(message, stacklevel=stacklevel + 1)
