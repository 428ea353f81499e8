"""The page as gr.Blocks, without three things that gradio does again and again, which grow and keep the server from answering.

In: what handlers yield. Out: the same answers. What a handler skips is left alone: gradio makes a new component for each time, with its schema, and
the files of a component that was made so are on no list of `delete_cache`: clips would stay on disk. For every session, which every call of the
API is, gradio writes down the settings of all components, for links to a page as somebody left it, which there are none of here. And after every
event it makes a table of the last 10,000 for its monitoring, which is off. It knows nothing about what the page shows.
"""

import copy
import os
from types import SimpleNamespace

import gradio as gr

os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")  # events that are remembered
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(1 << 30))  # events between two tables


class Page(gr.Blocks):
    """gr.Blocks whose handlers may skip outputs as often as they like."""

    async def postprocess_data(self, block_fn, predictions, state):
        """What goes to the browser, one for each output."""
        skipped = [isinstance(one, dict) and one == gr.skip() for one in predictions] if isinstance(predictions, (list, tuple)) else []
        if not any(skipped) or len(skipped) != len(block_fn.outputs) or len(skipped) == 1:
            return await super().postprocess_data(block_fn, predictions, state)
        told = [i for i, skip in enumerate(skipped) if not skip]
        answer = [gr.skip() for _ in skipped]
        if told:
            part = copy.copy(block_fn)
            part.outputs = [block_fn.outputs[i] for i in told]
            values = [predictions[i] for i in told]
            for i, value in zip(told, await super().postprocess_data(part, values if len(told) > 1 else values[0], state), strict=True):
                answer[i] = value
        return answer


def light_sessions(page):
    """From now on a session of the page, which is served already, begins with nothing written down."""
    page.app.state_holder.blocks = SimpleNamespace(default_config=page.default_config, blocks=())  # what gradio's SessionState asks of gr.Blocks
