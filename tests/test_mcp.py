"""The page as a server for MCP: off unless it is asked for, one line where it cannot be."""

import os
import socket
import sys

from conftest import FakeModel

import app
from videolcm.ui import Engine, build_ui, launch


def test_mcp_is_off_by_default(monkeypatch):
    monkeypatch.setenv("GRADIO_MCP_SERVER", "true")
    assert app.read_arguments([]).mcp is False and app.read_arguments(["--mcp"]).mcp is True
    page = build_ui(Engine(load=lambda ref, role: FakeModel(role)))
    launch(page, Engine(), server_name="127.0.0.1", quiet=True)
    try:
        assert page.mcp_server is False and not [route for route in page.app.routes if "mcp" in getattr(route, "path", "")]
    finally:
        page.close()


def test_mcp_where_it_is_missing_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio.mcp", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    try:
        assert app.exit_code(lambda: app.main(["--mcp", "--port", port])) == 2
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    out, err = capsys.readouterr()
    assert err.startswith("[E_MCP] ") and err.count("\n") == 1 and out == ""
