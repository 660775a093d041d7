"""What a compilation gives: approximated models, programs, their reports and files."""

from olac.program.program import ApproximatedModel, CompiledProgram
from olac.program.report import Report, SelfCheck

__all__ = ["ApproximatedModel", "CompiledProgram", "Report", "SelfCheck"]
