"""The page as a server for MCP: off unless it is asked for, one line where it cannot be, and where it can a tool for every tab."""

import asyncio
import importlib.util
import os
import socket
import sys

import pytest
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


@pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason='pip install "gradio[mcp]"')
def test_a_tool_makes_a_clip():
    page = build_ui(Engine(load=lambda ref, role: FakeModel(role)))
    _, url, _ = launch(page, Engine(), server_name="127.0.0.1", quiet=True, mcp_server=True)
    try:
        tools, good, bad = asyncio.run(visit(f"{url.rstrip('/')}/gradio_api/mcp/"))
    finally:
        page.close()
    assert {"text", "depth", "sketch", "inpaint", "compare"} == set(tools) and "1 to 8" in tools["text"]["steps"]["description"]
    assert not good.isError and any(".mp4" in part.text for part in good.content if part.type == "text")
    assert bad.isError and "[E_PROMPT_EMPTY]" in bad.content[0].text


async def visit(url):
    """(the arguments of every tool, an answer, a refusal)."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    asked = {"frames": 8, "steps": 1}
    async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = {tool.name: tool.inputSchema["properties"] for tool in (await session.list_tools()).tools}
        answers = [await session.call_tool("text", {**asked, "prompt": prompt}) for prompt in ("a red ball", " ")]
        return tools, *answers
