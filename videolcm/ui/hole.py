"""The controls of a hole: a brush on the first frame, a box, a mask file, how what is marked moves and fades; in the inpaint tab also a look at it.

In: the gr.Blocks that is open. Out: components named as the handler's parameters, and their events. Nothing that was painted or uploaded is
opened here: the brush's picture goes on as bytes. It knows nothing about masks.
"""

from pathlib import Path

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorDataBlobs

from videolcm.errors import AppError
from videolcm.ui.handlers import make_first_frame, make_mask_preview
from videolcm.ui.parts import control, given, unchecked

PAINT = ("#ffb0c8", 0.8)  # light, as a mask is, also where it is half transparent
LAYERS = 4  # more than the editor has
WAITING = 64 << 20  # bytes of paintings that were sent and are not used yet; the oldest go
QUIET = {"api_visibility": "private", "show_progress": "hidden"}


def build_hole(look=True):
    """{name: component}."""
    with gr.Row():
        with gr.Column(min_width=300, scale=3):
            painting = unchecked(gr.ImageEditor, painted, accept_blobs=layer_sent)(
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
            controls = {name: control(name) for name in ("moving", "grow", "feather")}
            controls |= {"look": gr.Button("Preview mask", min_width=120)} if look else {}
    with gr.Accordion("A box or a mask file", open=False), gr.Row():
        controls |= {name: control(name) for name in ("box", "mask")}
    return controls | {"painting": painting}


@server
def layer_sent(component, data: AcceptBlobs):
    """In place of the editor's own, which makes room for any index and keeps whatever nobody asks for: a few layers of the newest paintings.

    AppError E_NUMBER for an index that no layer has.
    """
    told, waiting = data.data, component.blob_storage
    if told["type"] != "layer":  # the picture that was painted on is the server's own
        return
    index = int(told["index"])
    if not 0 <= index < LAYERS:
        raise AppError("E_NUMBER", name="The layer", range=f"a whole number from 0 to {LAYERS - 1}", given=index)
    waiting.setdefault(told["id"], EditorDataBlobs(background=None, layers=[None] * LAYERS, composite=None)).layers[index] = data.files[0][1]
    while len(waiting) > 1 and sum(len(layer or b"") for one in waiting.values() for layer in one.layers) > WAITING:
        del waiting[next(iter(waiting))]


def painted(component, payload):
    """In place of the editor's own reading of pictures: the files of what was painted, each as bytes."""
    if payload is None:
        return None
    sent = component.blob_storage.pop(payload.id, None) if payload.id else payload
    layers = sent.layers if sent else []
    return [layer if isinstance(layer, bytes) else Path(layer.path).read_bytes() for layer in layers if layer is not None]


def wire_painting(controls):
    """Events: another video, or another part of it, is shown for painting."""
    video, frames, size, start, fit = (controls[name] for name in ("video", "frames", "size", "start", "fit"))
    changes = [component.change for component in (video, size, start, fit)]
    gr.on(changes, make_first_frame(), [video, frames, size, start, fit], controls["painting"], trigger_mode="always_last", **QUIET)


def wire_hole(controls, tab, outputs, folder):
    """Events of the inpaint tab: those of painting; what marked another video is forgotten; the mask is shown over every frame."""
    _, _, status, _, followed = outputs
    wire_painting(controls)
    controls["video"].upload(lambda: (None, ""), None, [controls["mask"], controls["box"]], queue=False, **QUIET)
    controls["look"].click(make_mask_preview(folder), given(tab, controls), [followed, status], show_progress_on=status, api_visibility="private")
