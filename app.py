"""`python app.py`: arguments -> build_ui() -> launch(). The page is up in seconds; torch and the model are loaded behind it.

It knows nothing about layout or networks. Errors are one line on stderr and exit code 2.
"""

import contextlib
import os

os.environ.pop("GRADIO_SERVER_PORT", None)  # gradio reads it as a number when it is imported; here --port decides

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  a Space with a shared GPU needs it before anything else

import errno
import signal
import socket
import sys
import tempfile
from pathlib import Path

from videolcm.arguments import Parser, exit_code
from videolcm.errors import AppError
from videolcm.sources import SOURCES, is_here

LOCAL = ("127.0.0.1", "localhost", "::1")


def read_arguments(argv=None):
    """Where to listen and for whom. AppError E_NETWORK for listening beyond this machine without a password."""
    on_a_space = "SPACE_ID" in os.environ
    parser = Parser(prog="python app.py", description="The VideoLCM page.")
    parser.add_argument("--host", default="0.0.0.0" if on_a_space else "127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=port_number, default=7860, help="default: 7860")
    parser.add_argument("--listen", action="store_true", help="listen on every address; needs --auth")
    parser.add_argument("--share", action="store_true", help="a public link by gradio's servers; needs --auth")
    parser.add_argument("--auth", type=name_and_password, metavar="NAME:PASSWORD", help="ask visitors for these")
    parser.add_argument("--teacher", type=model_folder, action="append", default=[], metavar="REF", help="one more model to distil; repeatable")
    parser.add_argument("--mcp", action="store_true", help="also be a server of tools for programs that speak MCP; needs gradio[mcp]")
    args = parser.parse_args(argv)
    args.host = "0.0.0.0" if args.listen else args.host
    if (args.share or args.host not in LOCAL) and not args.auth and not on_a_space:
        raise AppError("E_NETWORK")
    return args


def port_number(text):
    """1..65535. ValueError for anything else."""
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError(text)
    return port


def model_folder(text):
    """A model's folder, or a name of SOURCES that is here, as (its name, its absolute path or that name). ValueError if there is none."""
    if text in SOURCES and is_here(text):
        return text, text
    folder = Path(text).absolute()
    if not any((folder / file).is_file() for file in ("manifest.json", "model_index.json")):
        raise ValueError(text)
    return folder.name, str(folder)


def name_and_password(text):
    """ "ann:secret" as a pair. ValueError if either is empty."""
    name, _, password = text.partition(":")
    if not name or not password:
        raise ValueError(text)
    return name, password


def require_free(host, port):
    """AppError E_PORT if something else listens there, E_ARGUMENTS if the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            raise AppError("E_PORT", given=port) if taken else AppError("E_ARGUMENTS", detail=f"no address {host} here") from error


def require_mcp():
    """AppError E_MCP where gradio's server for MCP cannot be imported."""
    try:
        import gradio.mcp  # noqa: F401
    except ImportError as error:
        raise AppError("E_MCP") from error


def serve(args, folder, jobs):
    """The page, up and answering; clips pass through `folder`. On a Space with a shared GPU the models are there before the page is."""
    from videolcm.history import History
    from videolcm.lease import Lease
    from videolcm.ui import Engine, build_ui, launch
    from videolcm.ui.distil_handlers import guard_of
    from videolcm.ui.space import LentJobs, lend_gpu, on_zero_gpu
    from videolcm.ui.weights import why_off

    public = args.share or args.host not in LOCAL
    engine, guard = Engine(lease=Lease(jobs.folder)), guard_of(os.environ, public)
    if on_zero_gpu(os.environ):
        engine.lease = None  # each has a GPU of its own; who waits for one must not keep others from theirs
        lend_gpu(engine)
        jobs = jobs if guard.off else LentJobs(jobs.folder)
    distilling = (jobs, guard, {"toybox": "toybox", **dict(args.teacher)})
    page = build_ui(engine, folder, distilling, History(), why_off(os.environ, public and not args.auth))
    options = {"server_name": args.host, "server_port": args.port, "share": args.share, "auth": args.auth, "mcp_server": args.mcp}
    try:
        _, url, public = launch(page, engine, jobs, quiet=True, **options)
    except ValueError as error:  # gradio asks its own page whether it is there
        raise AppError("E_LOCALHOST") from error
    if args.mcp and not page.mcp_server:
        raise AppError("E_MCP")
    print(f"VideoLCM is at {public or url}", flush=True)
    if not on_zero_gpu(os.environ):
        engine.warm_in_background()
    return page


@contextlib.contextmanager
def no_child_behind(jobs):
    """In the end fine-tunes save, and whatever the block has started is ended: within 10 seconds, whatever is being computed."""
    import psutil

    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        jobs.close()
        for child in set(psutil.Process().children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def main(argv=None):
    """Serve until Ctrl-C or SIGTERM."""
    args = read_arguments(argv)
    require_free(args.host, args.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from videolcm.jobs import Jobs

    jobs = Jobs()
    with tempfile.TemporaryDirectory(prefix="videolcm-", ignore_cleanup_errors=True) as folder, no_child_behind(jobs):
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=os.path.join(folder, "gradio"))
        if args.mcp:
            require_mcp()
        page = serve(args, folder, jobs)
        try:
            page.block_thread()
        finally:
            page._queue.close()  # no more work is taken


if __name__ == "__main__":
    try:
        code = exit_code(main)
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # threads that compute or serve would be waited for
