"""One page that shows what a comparison found: one HTML file, which asks nothing of any network.

Run names, queries, ids and passages are other people's text: Jinja escapes them, the page's own script writes them as
text only, and its content security policy runs that script and no other.
"""

from rerank.eval.report.page import render, write_report
from rerank.eval.report.section import RunCard, Section

__all__ = ["RunCard", "Section", "render", "write_report"]
