"""What a compilation gives: approximated models, programs, their reports and files."""

from olac.program.client_program import ClientProgram
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.program.report import Report, SelfCheck

__all__ = ["ApproximatedModel", "ClientProgram", "CompiledProgram", "Report", "SelfCheck"]
