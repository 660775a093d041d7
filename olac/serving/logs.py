"""Structured logs: each record is an event with named fields, written as one line of JSON.

Fields are names, counts, sizes and seconds. A server has no secret key, so it has no decrypted value to log; inputs and
keys are not logged either, only their names.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from olac.system.logs import FIELDS as FIELDS
from olac.system.logs import event as event


class JsonFormatter(logging.Formatter):
    """One line of JSON for a record: time in UTC, level, logger, event, and the fields of `event`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, FIELDS, {})
        if record.exc_info and record.exc_info[0] is not None:
            # The place and the type, but not the message, which may hold what somebody sent.
            line["error"] = record.exc_info[0].__name__
            trace, places = record.exc_info[2], []
            while trace is not None:
                places.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
                trace = trace.tb_next
            line["places"] = places[-8:]
        return json.dumps(line, default=str)


def set_up(level: str) -> None:
    """Write the records of this process to stderr as lines of JSON; `level` is a name such as "info"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
