"""The report as a page: see :func:`html_report`."""

from .page import html_report

__all__ = ["html_report"]
