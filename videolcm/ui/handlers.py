"""What runs when somebody presses Generate or calls the API: values of the page -> Request -> updates of the page.

In: what the components or an API client sent, unchecked. Out: a generator of (clip, settings, status, preview), one per step; closing
it stops the work within one step. This is the one place where an AppError becomes a gr.Error, and where anything unforeseen is logged
and shown as E_INTERNAL. It knows nothing about layout.
"""

import logging
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import gradio as gr

from videolcm.errors import AppError
from videolcm.ui import messages

log = logging.getLogger(__name__)


def make_handler(task, engine, folder):
    """The handler of a task. Clips are written to `folder` and removed when gradio has taken its copy."""

    def handler(prompt, steps=4, seed=0, sampler="lcm", frames=16, size="256x256", role="student"):
        """Make a short video clip from a sentence.

        Args:
            prompt: what to see, 1 to 512 characters.
            steps: a whole number from 1 to 8; the sampler ddim always takes 50.
            seed: a whole number from 0 to 2147483647; the same seed gives the same clip.
            sampler: lcm (few steps) or ddim (the slow reference).
            frames: a whole number from 8 to 32; 16 is two seconds.
            size: width x height, multiples of 32 from 128 to 512, like 256x256.
            role: student or teacher, the model to use.

        Returns:
            The clip as an mp4, its settings, a status line as HTML, and a preview as HTML that is empty in the end.
        """
        steps = steps if sampler == "lcm" else None
        values = {"prompt": prompt, "steps": steps, "seed": seed, "sampler": sampler, "frames": frames, "task": task}
        yield from guarded(lambda: clip_updates(engine, folder, role, size, values))

    handler.__name__ = handler.__qualname__ = task
    return handler


def guarded(run):
    """The updates of `run()`. An error first clears status and preview, then becomes a gr.Error of one line."""
    try:
        with closing(run()) as updates:
            yield from updates
            return
    except AppError as error:
        refusal = error
    except Exception:
        log.exception("a handler failed")
        refusal = AppError("E_INTERNAL")
    yield gr.skip(), gr.skip(), messages.plain("Nothing was made."), ""
    raise gr.Error(str(refusal), print_exception=False)


def clip_updates(engine, folder, role, size, values):
    """(clip, settings, status, preview) for every event of one clip. AppError for whatever is out of range."""
    from videolcm.pipeline import SAMPLER_OF, Request, one_of, size_of

    one_of(role, SAMPLER_OF, "E_ROLE")
    width, height = size_of(size)
    request = Request(width=width, height=height, **values)
    with closing(engine.run(request, role)) as events:
        for event in events:
            if hasattr(event, "frames"):
                yield from finished(event, Path(folder))
                return
            image = messages.preview(event)
            yield gr.skip(), gr.skip(), messages.status(event), gr.skip() if image is None else image


def finished(result, folder):
    """The last update. The file lives as long as gradio needs to copy it."""
    from videolcm.pipeline import save

    path = folder / f"{uuid4().hex}.mp4"
    try:
        result = save(result, path)
        yield str(path), result.settings, messages.done(result), ""
    finally:
        path.unlink(missing_ok=True)
