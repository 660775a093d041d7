"""Progress of everything that takes long: events, the display in a terminal or notebook, and log records of stages.

`showing` stands around such work. What it gives is called with an event for each step; it tells the caller's own
function, or shows a bar, or does neither, and it logs when stages begin and end. There is no thread behind the bar: it
is drawn when an event comes, a few times a second at most, so that processes may fork and nothing is left over.
"""

from __future__ import annotations

from olac.progress.events import SHOWN_AFTER as SHOWN_AFTER
from olac.progress.events import Event as Event
from olac.progress.events import Shown as Shown
from olac.progress.events import ShownCounts as ShownCounts
from olac.progress.reporter import Reporter as Reporter
from olac.progress.reporter import at_stage as at_stage
from olac.progress.reporter import counting as counting
from olac.progress.reporter import duration as duration
from olac.progress.reporter import exact_duration as exact_duration
from olac.progress.reporter import showing as showing
from olac.progress.reporter import with_counts as with_counts
