"""One clip from one request: prompt -> context -> steps of x0 -> latents -> frames.

In: a VideoModel and a Request, which has validated itself. Out: `generate` yields a Progress for every stage and step, with a small
preview of x0, and ends with a Result; closing the generator cancels. `save` writes a Result as an mp4.
It knows nothing about networks, pages or command lines.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real

import numpy as np
import torch

from . import memory
from .errors import AppError
from .models.base import TASKS, Conditions
from .sampling import GAMMA, SAMPLERS, Noise, guided
from .stopwatch import Stopwatch, timed
from .video import sha256_of, write_mp4

MAX_PROMPT = 512  # characters
MAX_STEPS = {"lcm": 8, "tcd": 8, "ddim": 100, "ddpm": 100}
DEFAULT_STEPS = {"lcm": 4, "tcd": 4, "ddim": 50, "ddpm": 50}
SAMPLER_OF = {"student": None, "teacher": "ddim"}  # what each role is made for; None: see `way`
WORLD = "It knows balls, cubes, cylinders and cones, their colours and sizes, how they move, what they stand on and the sky above."


@dataclass(frozen=True)
class Request:
    """What somebody wants to see. It checks itself: an instance that exists is valid, its numbers are ints and its prompt is clean.

    prompt: 1..512 characters once control characters are gone; sampler: lcm, tcd, ddim or ddpm, None for the few-step one that the model is made for;
    steps: 1..8 for lcm and tcd, 1..100 for the others, None for 4 or 50; seed: 0..2147483647; frames: 8..32; height, width: multiples of 32 in
    128..512; guidance: w of Eq. 5 in 0..30, None for none with a student, the model's own with a teacher or with a student that takes w as an
    input; gamma: of tcd in 0..1, None for the model's own, which is 0 for a two-time map, else 0.3; the others have no such knob.
    task: text, or depth, sketch, inpaint, which follow `video`, uint8 (frames, height, width, 3) as `footage.read_video` makes it; inpaint
    replaces `hole`, float32 (frames, height, width) in 0..1 as masks.py makes it. also: more maps to follow, of depth and sketch; extractor:
    a name of conditions.EXTRACTORS for the task's own map, None for the best that is here; strength: 0..2, how strongly maps are followed.
    material: how video and hole were made of files (uploads.Material.told), so that the settings tell it; nothing here reads it.
    Whole numbers may come as 4.0, not as 2.5, "4" or True.
    Raises AppError E_PROMPT_EMPTY, _LONG, _TEXT, E_STEPS, E_SEED, E_FRAMES, E_SIZE, E_SAMPLER, E_GUIDANCE, E_GAMMA, E_TASK,
    E_TASK_INPUT, E_CLIP, E_MASK_SHAPE, E_ALSO, E_STRENGTH.
    """

    prompt: str
    steps: int | None = None
    seed: int = 0
    frames: int = 16
    height: int = 256
    width: int = 256
    sampler: str | None = None
    guidance: float | None = None
    gamma: float | None = None
    task: str = "text"
    extractor: str | None = None
    also: tuple[str, ...] = ()
    strength: float = 1.0
    video: np.ndarray | None = field(default=None, repr=False, compare=False)
    hole: np.ndarray | None = field(default=None, repr=False, compare=False)
    material: dict | None = field(default=None, compare=False)

    def __post_init__(self):
        one_of(self.task, TASKS, "E_TASK")
        if self.sampler is not None:
            one_of(self.sampler, SAMPLERS, "E_SAMPLER")
        checked = {
            "prompt": clean_prompt(self.prompt),
            "steps": checked_steps(self.steps, self.sampler),
            "seed": whole(self.seed, 0, 2**31 - 1, "E_SEED"),
            "frames": whole(self.frames, 8, 32, "E_FRAMES"),
            "height": side(self.height, self),
            "width": side(self.width, self),
            "guidance": within(self.guidance, 0, 30, "E_GUIDANCE"),
            "gamma": within(self.gamma, 0, 1, "E_GAMMA"),
            "strength": 1.0 if self.strength is None else within(self.strength, 0, 2, "E_STRENGTH"),
            "also": tuple(self.also) if isinstance(self.also, (list, tuple)) else (self.also,) if self.also else (),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in self.also:
            one_of(name, ("depth", "sketch"), "E_ALSO")
        if self.task == "text":
            for name in ("video", "hole", "extractor"):
                if getattr(self, name) is not None:
                    raise AppError("E_TASK_INPUT", given="text", needs=f"no {name}")
        else:
            check_guides(self)

    def settings(self):
        """Everything that was asked for, as a dict that JSON can hold; video and hole by the sha256 of their content.

        `Request(**request.settings())` asks for the same where there is no video; else the same one must be given again.
        """
        asked = {f.name: getattr(self, f.name) for f in fields(self)}
        content = {name: None if asked[name] is None else sha256_of(asked[name]) for name in ("video", "hole")}
        if self.material is None:
            del asked["material"]
        return asked | content | {"also": list(self.also)}


@dataclass(frozen=True)
class Progress:
    """How far a clip is: step i of n of a stage ("text", "conditions", "denoise", "decode"); preview is uint8 (F, h, w, 3), small, or None.
    `left`: seconds that the stage's other steps will take if they go on as those before; 0 where nobody knows."""

    stage: str
    i: int
    n: int
    preview: np.ndarray | None = None
    left: float = 0.0


@dataclass(frozen=True)
class Result:
    """A finished clip. Everything in it is reproducible from `settings` but the seconds."""

    frames: np.ndarray  # uint8 (F, H, W, 3)
    settings: dict  # the request with nothing left open, and the model's name, role, sha256, number format and fps
    seconds: dict  # text, conditions, denoise, decode, write and their sum, total
    nfe: int  # network evaluations: guidance needs two per step
    sha256: str  # of the frames
    notices: tuple[str, ...] = ()  # friendly sentences for people, such as words that the model does not know
    maps: dict = field(default_factory=dict, repr=False)  # what was followed, by name, for people: uint8 (F, H, W, 3)


class Counted:
    """A denoiser that counts its evaluations: a batch of two, as guidance makes it, is two."""

    def __init__(self, denoise):
        self.denoise, self.nfe = denoise, 0

    def __call__(self, x_t, t, cond):
        self.nfe += len(x_t)
        return self.denoise(x_t, t, cond)


def generate(model, request, prepare=None):
    """Yields Progress ..., then one Result. `*_, result = generate(model, request)` waits for the end.

    `prepare(model, request) -> (cond, empty)` is `encode_prompt`, or something that gives the same but need not make it anew.

    AppError E_TASK_MODEL if the model does not do the task, E_TASK_INPUT if the task needs a video, E_W_RANGE if it has not learned that
    guidance, E_NONFINITE if its values are not numbers, E_MEMORY where memory runs out, when all of the clip has been freed. Preview and
    conversion to uint8 are counted in their stages' seconds; the result's write is 0 until `save`.
    """
    request = settle(model, request)
    try:
        yield from made(model, request, prepare)
        return
    except Exception as error:
        if not memory.ran_out(error):
            raise
        shortage = memory.shortage(error, model.device)
    memory.free()
    more = ", or guidance 0" if request.guidance else ""
    raise AppError("E_MEMORY", frames=request.frames, size=f"{request.width}x{request.height}", shortage=shortage, more=more)


def made(model, request, prepare):
    """The events of a request that is settled."""
    watch, denoise = Stopwatch(), Counted(model.denoise)
    yield Progress("text", 0, 1)
    with watch("text"):
        cond, empty = (prepare or encode_prompt)(model, request)
    yield Progress("text", 1, 1)
    denoise_guided, maps, remarks = guided(denoise, empty, request.guidance, model.info.guided), {}, ()
    if model.info.w_range:  # the student does by itself what guidance did for its teacher
        denoise_guided, cond = denoise, cond.with_w(request.guidance)
    if request.task != "text":
        from . import guides  # brings OpenCV and the extractors, which text alone does without

        yield Progress("conditions", 0, 1)
        for found in watch.each("conditions", guides.guides_of(request, model.device, model.dtype, model.learned)):
            if not isinstance(found, guides.Guides):
                yield Progress("conditions", *found)
        _, maps, remarks = found
        with watch("conditions"):
            cond = guides.following(cond, found.maps, model.device)
        denoise_guided = guides.steered(denoise_guided, request.strength)
        yield Progress("conditions", 1, 1, next(iter(maps.values())))
    looked_at = ((step, look(model, step.x0, request.frames)) for step in denoising(model, request, denoise_guided, cond))
    for step, preview in watch.each("denoise", looked_at):
        latents = step.x0
        yield Progress("denoise", step.i, step.n, preview, watch.seconds["denoise"] / step.i * (step.n - step.i))
    yield Progress("decode", 0, 1)
    with watch("decode"):
        frames = decode(model, latents, request.frames)
        frames = guides.put_back(request, frames) if maps else frames
    yield Progress("decode", 1, 1)
    yield finished(model, request, frames, timed(watch.seconds), denoise.nfe, maps, remarks)


def save(result, path):
    """Write a Result as an mp4 at `path`; returns it with the seconds of writing counted. AppError E_OUTPUT."""
    watch = Stopwatch()
    with watch("write"):
        write_mp4(path, result.frames, result.settings["fps"], result.settings)
    return replace(result, seconds=timed({**result.seconds, "write": watch.seconds["write"]}))


def told(result):
    """A Result as JSON holds it, without the frames."""
    return {
        "nfe": result.nfe,
        "seconds": {stage: round(seconds, 4) for stage, seconds in result.seconds.items()},
        "sha256": result.sha256,
        "settings": result.settings,
        "notices": result.notices,
    }


def settle(model, request):
    """The request with its guidance, sampler and gamma decided, once it is known that this model can do it."""
    if request.task not in model.info.tasks:
        raise AppError("E_TASK_MODEL", model=model.info.name, given=request.task, known=", ".join(model.info.tasks))
    takes = model.info.w_range
    own = model.info.guidance if model.info.role == "teacher" or takes else 0.0
    guidance = own if request.guidance is None else request.guidance
    if takes and not takes[0] <= guidance <= takes[1]:
        raise AppError("E_W_RANGE", low=takes[0], high=takes[1], given=guidance)
    own, knobs = way(model.info)
    how, gamma = request.sampler or own, knobs.get("gamma", GAMMA) if request.gamma is None else request.gamma
    return replace(request, guidance=guidance, sampler=how, gamma=gamma if how == "tcd" else None)


def way(info):
    """(sampler, its knobs) of few steps that a model is made for: one with a two-time map is told where each step goes, and wants no fresh noise."""
    return ("tcd", {"gamma": 0.0}) if info.two_time else ("lcm", {})


@torch.no_grad()
def encode_prompt(model, request):
    """Conditions of the prompt and the empty context (1, L, D) of the guidance's other branch."""
    context = model.encode_text([request.prompt, ""])  # (2, L, D)
    return Conditions(context[:1]), context[1:]


def denoising(model, request, denoise, cond):
    """A generator of sampling.Step. The noise depends on the seed alone: the same for every sampler and number of steps."""
    noise = Noise(model.latent_shape(request.frames, request.height, request.width), request.seed, model.device)
    knobs = {} if request.gamma is None else {"gamma": request.gamma}
    return SAMPLERS[request.sampler](denoise, model.schedule, noise, cond, request.steps, **knobs)


@torch.no_grad()
def look(model, x0, frames):
    """A preview of x0 (1, C, f, h, w): uint8 (F, h', w', 3)."""
    return model.preview(x0, frames)


@torch.no_grad()
def decode(model, latents, frames):
    """Latents (1, C, f, h, w) -> uint8 (F, H, W, 3)."""
    return to_frames(model.decode(latents, frames))


def to_frames(pixels):
    """pixels (1, 3, F, H, W) in [-1, 1] -> uint8 (F, H, W, 3), rounded to the nearest level. AppError E_NONFINITE.

    Frame by frame: what is between stays in a processor's caches, which takes a fraction of the time of passes over the whole clip.
    """
    frames = torch.empty((*pixels.shape[2:], 3), dtype=torch.uint8, device=pixels.device)
    for frame, picture in zip(frames, pixels[0].permute(1, 2, 3, 0), strict=True):  # (H, W, 3) twice
        if not torch.stack(picture.aminmax()).isfinite().all():  # NaN is the least and the largest where there is one
            raise AppError("E_NONFINITE", given="decode")
        frame.copy_(picture.float().clamp(-1, 1).add_(1).mul_(127.5).round_())
    return frames.cpu().numpy()


def finished(model, request, frames, seconds, nfe, maps, remarks=()):
    """The Result, its settings complete."""
    return Result(frames, settings_of(model, request), seconds, nfe, sha256_of(frames), (*notices(model, request.prompt), *remarks), maps)


def settings_of(model, request):
    """The settings of the clip that `model` makes of a request that is settled: they are known before it is made."""
    info = model.info
    made_by = {"model": info.name, "role": info.role, "model_sha256": info.sha256, "dtype": str(model.dtype).split(".")[-1], "fps": info.fps}
    return {**request.settings(), **made_by}


def unknown_words(model, prompt):
    """The words of `prompt` that a model of a closed world has never seen, lower case, each once; [] where any word goes."""
    if model.info.words is None:
        return []
    words = re.findall(r"(?<!['’])\b[^\W_]+", prompt.lower())
    return [word for word in dict.fromkeys(words) if word not in model.info.words]


def notices(model, prompt):
    """Friendly sentences about a prompt that the model only half understands."""
    unknown = [word if len(word) <= 24 else word[:21] + "..." for word in unknown_words(model, prompt)]
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    return (f"The built-in model does not know: {', '.join(unknown[:8])}{more}. {WORLD}",) if unknown else ()


def clean_prompt(prompt):
    """`prompt` in NFC, without control and invisible formatting characters, runs of white space made one space.

    AppError E_PROMPT_TEXT for what is not text, E_PROMPT_EMPTY if nothing is left, E_PROMPT_LONG for more than 512 characters.
    """
    if not isinstance(prompt, str):
        raise AppError("E_PROMPT_TEXT", given=f"a value of type {type(prompt).__name__}")
    if len(prompt) > 16 * MAX_PROMPT:
        raise AppError("E_PROMPT_LONG", given=len(prompt), limit=MAX_PROMPT)
    surrogate = re.search("[\ud800-\udfff]", prompt)
    if surrogate:
        raise AppError("E_PROMPT_TEXT", given=f"half a character (U+{ord(surrogate.group()):04X})")
    text = " ".join("".join(map(visible, unicodedata.normalize("NFC", prompt))).split())
    if not text.strip("\u200c\u200d "):
        raise AppError("E_PROMPT_EMPTY")
    if len(text) > MAX_PROMPT:
        raise AppError("E_PROMPT_LONG", given=len(text), limit=MAX_PROMPT)
    return text


def visible(character):
    """The character, a space for white space, nothing for control and formatting ones (but the joiners, which some scripts need)."""
    if character.isspace():
        return " "
    hidden = unicodedata.category(character) in ("Cc", "Cf") and character not in "\u200c\u200d"
    return "" if hidden else character


def check_guides(request):
    """AppError for a request that follows a video it does not have, or one that does not fit."""
    if not isinstance(request.video, np.ndarray):
        raise AppError("E_TASK_INPUT", given=request.task, needs="a video")
    shape = (request.frames, request.height, request.width)
    if request.video.dtype != np.uint8 or request.video.shape != (*shape, 3):
        raise AppError("E_CLIP", given=f"{request.video.dtype} {request.video.shape}")
    if request.task == "inpaint" and not isinstance(request.hole, np.ndarray):
        raise AppError("E_TASK_INPUT", given=request.task, needs="a mask")
    if request.task == "inpaint" and request.extractor is not None:
        raise AppError("E_TASK_INPUT", given=request.task, needs="no extractor")
    if request.hole is not None and request.hole.shape != shape:
        raise AppError("E_MASK_SHAPE", given=request.hole.shape, needs=shape)


def one_of(value, known, code):
    """AppError `code` unless `value` is one of the names in `known`."""
    if not isinstance(value, str) or value not in known:
        raise AppError(code, given=shown(value), known=", ".join(known))


def whole(value, low, high, code, **values):
    """`value` as an int if it is a whole number in low..high (4.0 is one; True, NaN, 2.5 and "4" are not), else AppError `code`."""
    if not is_whole(value) or not low <= value <= high:
        raise AppError(code, given=shown(value), **values)
    return int(value)


def is_whole(value):
    """Whether `value` is a whole number: 4, 4.0 and numpy's, not True, NaN, 2.5 or "4"."""
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, Integral) or (isinstance(value, Real) and math.isfinite(value) and float(value).is_integer())


def checked_steps(value, sampler):
    """Steps in the sampler's range, its own number if None. AppError E_STEPS."""
    sampler = sampler or "lcm"  # what a model is made for takes as many steps
    limit = MAX_STEPS[sampler]
    return DEFAULT_STEPS[sampler] if value is None else whole(value, 1, limit, "E_STEPS", limit=limit)


def side(value, request):
    """A height or width as an int. AppError E_SIZE."""
    if not is_whole(value) or not 128 <= value <= 512 or value % 32:
        raise AppError("E_SIZE", given=f"{shown(request.width)} x {shown(request.height)}")
    return int(value)


def size_of(text):
    """ "448x256" as (width, height). AppError E_SIZE for what does not look so."""
    sides = re.fullmatch("([0-9]{1,4})x([0-9]{1,4})", text) if isinstance(text, str) else None
    if not sides:
        raise AppError("E_SIZE", given=shown(text))
    return int(sides[1]), int(sides[2])


def within(value, low, high, code):
    """`value` as a float in low..high, or None. AppError `code`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise AppError(code, given=shown(value))
    return float(value)


def shown(value):
    """A refused value as a message shows it; a number too long to print is named instead."""
    try:
        return repr(value)
    except ValueError:
        return "a very long number"
