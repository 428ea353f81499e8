"""The inpaint tab's own controls: a brush on the first frame, a box, a mask file, how what is marked moves and fades, and a look at it.

In: the gr.Blocks that is open. Out: components named as the handler's parameters, and their events. Nothing that was painted or uploaded is
opened here: the brush's picture goes on as bytes. It knows nothing about masks.
"""

from pathlib import Path

import gradio as gr

from videolcm.ui.handlers import make_first_frame, make_mask_preview
from videolcm.ui.parts import as_given, given, path_of
from videolcm.ui.tabs import PARAMETERS

PAINT = ("#ffb0c8", 0.8)  # light, as a mask is, also where it is half transparent
QUIET = {"api_visibility": "private", "show_progress": "hidden"}


def build_hole():
    """{name: component}, with the button "look"."""
    with gr.Row():
        with gr.Column(min_width=300, scale=3):
            painting = gr.ImageEditor(
                label="Paint here",
                placeholder="Upload a video, then paint what is to be replaced in its first frame.",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=28, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
                eraser=gr.Eraser(default_size=28),
                height=330,
                buttons=[],
                elem_classes="painting",
            )
        with gr.Column(min_width=200, scale=2):
            moving = gr.Checkbox(PARAMETERS["moving"][0], label="Moves with the picture")
            grow = gr.Slider(0, 64, PARAMETERS["grow"][0], step=1, label="Grow", info="Pixels")
            feather = gr.Slider(0, 64, PARAMETERS["feather"][0], step=1, label="Feather", info="Pixels of soft rim")
            look = gr.Button("Preview mask", min_width=120)
    with gr.Accordion("A box or a mask file", open=False), gr.Row():
        box = gr.Textbox(label="Box", info="x0,y0,x1,y1 from 0 to 1", placeholder="0.2,0.3,0.6,0.9", min_width=180)
        mask = gr.File(label="Mask, light is replaced", file_types=["image", "video"], height=110, min_width=200)
    for component in (moving, grow, feather, box):
        component.preprocess = as_given
    mask.preprocess, painting.preprocess = path_of, painted_by(painting.blob_storage)
    return {"painting": painting, "moving": moving, "grow": grow, "feather": feather, "look": look, "box": box, "mask": mask}


def painted_by(blobs):
    """In place of the editor's own reading of pictures: the files of what was painted, each as bytes."""

    def painted(payload):
        if payload is None:
            return None
        sent = blobs.pop(payload.id, None) if payload.id else payload
        layers = sent.layers if sent else []
        return [layer if isinstance(layer, bytes) else Path(layer.path).read_bytes() for layer in layers if layer is not None]

    return painted


def wire_hole(controls, tab, outputs, folder):
    """Events: another video, or another part of it, is shown for painting; the mask is shown over every frame."""
    _, _, status, _, followed = outputs
    video, frames, size, start, fit = (controls[name] for name in ("video", "frames", "size", "start", "fit"))
    changes = [component.change for component in (video, size, start, fit)]
    gr.on(changes, make_first_frame(), [video, frames, size, start, fit], controls["painting"], trigger_mode="always_last", **QUIET)
    video.upload(lambda: (None, ""), None, [controls["mask"], controls["box"]], queue=False, **QUIET)
    controls["look"].click(make_mask_preview(folder), given(tab, controls), [followed, status], show_progress_on=status, api_visibility="private")
