"""The report: tables in, one self-contained page out (extra ``report``). Nothing calls it but the command line."""

from offprincipal.report.page import draw

__all__ = ["draw"]
