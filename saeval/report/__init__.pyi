from saeval.report.files import write_reports as write_reports
from saeval.report.follow import FollowServer as FollowServer
from saeval.report.html import write_plots as write_plots
from saeval.report.html.board import BoardRun as BoardRun, board_pages as board_pages
from saeval.report.html.joined import joined_page as joined_page
from saeval.report.joined_text import BOARD_FORMATS as BOARD_FORMATS, written as written
from saeval.report.live import LiveServer as LiveServer
from saeval.report.markdown import markdown_report as markdown_report
from saeval.report.reader import Run as Run, read as read
from saeval.report.server import LocalServer as LocalServer
from saeval.report.terminal import finding_line as finding_line, render as render
