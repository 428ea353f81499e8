"""The page: the only code that imports gradio. `build_ui(engine)` makes it, `launch(page, engine)` serves it.

In: an Engine. Out: a gr.Blocks with one tab per row of TABS and the comparison's, and a server with GET /healthz and GET /readyz beside it.
Nothing is fetched from elsewhere. It knows nothing about networks, and brings torch in only after the page is up.
"""

import shutil
import sys
import tempfile

import gradio as gr

from videolcm.ui import distil, gate
from videolcm.ui.blocks import Page, light_sessions
from videolcm.ui.comparison import build_comparison
from videolcm.ui.engine import Engine
from videolcm.ui.history import build_history
from videolcm.ui.look import STYLE, theme
from videolcm.ui.tab import build_tab
from videolcm.ui.tabs import EARTH, EXAMPLES, TABS
from videolcm.ui.weights import build_weights

__all__ = ["Engine", "build_ui", "launch"]

TITLE = """# VideoLCM
Type what you want to see: a consistency model makes it a two-second clip in one to eight steps, on this machine."""
KEEP = (600, 3600)  # seconds between two clean-ups, and until a clip is removed
MAX_WAITING = 32  # jobs in the queue
TURN = 0.001  # seconds that a thread keeps Python to itself: the server waits for a turn several times in every answer


def build_ui(engine, folder=None, distilling=None, history=None, no_downloads=None):
    """The page as gr.Blocks. Clips pass through `folder`, a new temporary one if None. `distilling` is what distil.build_distil takes; finished clips
    are kept in `history`, a history.History, or nowhere; `no_downloads` says why there are none from this page, None where there are."""
    folder = folder or tempfile.mkdtemp(prefix="videolcm-")
    with Page(title="VideoLCM", analytics_enabled=False, delete_cache=KEEP) as page:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Tabs() as tabs:
            for tab in TABS.values():
                build_tab(tab, engine, folder, history)
            compared = build_comparison(engine, folder, history)
            if distilling:
                distil.build_distil(*distilling, tabs, compared)
            if history:
                build_history(history, folder)
            build_weights(no_downloads)
    return page.queue(max_size=MAX_WAITING)


def launch(page, engine, jobs=None, **options):
    """Serve the page as launch() of gr.Blocks does, with safe settings; `options` (server_name, server_port, auth ...) come on top.

    `jobs` (a jobs.Jobs) are told of by GET /readyz.
    """
    if shutil.which("ffprobe") is None:
        gr.processing_utils.ffmpeg_installed = lambda: False  # gradio asks for ffmpeg alone, then fails for want of ffprobe
    gate.in_our_words()
    sys.setswitchinterval(TURN)
    settings = {
        "theme": theme(),
        "css": STYLE + distil.STYLE,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
        "max_file_size": "64mb",
        "enable_monitoring": False,
        "mcp_server": False,  # whatever GRADIO_MCP_SERVER says
        "allowed_paths": [str(EXAMPLES), str(EARTH)],
        "state_session_capacity": 64,  # sessions that gradio remembers
        "app_kwargs": {"routes": gate.health(page, engine, tempfile.gettempdir(), jobs), "middleware": [gate.gate(page, engine)]},
        "prevent_thread_lock": True,
    }
    served = page.launch(**{**settings, **options})
    light_sessions(page)
    return served
