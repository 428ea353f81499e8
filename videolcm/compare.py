"""One request made in several ways that share their noise: few steps and many, sampler beside sampler, student beside teacher.

In: the models by role, a Request, the Cells to make, and which of them is the reference. Out: a generator of CellProgress, CellDone and
CellStopped. Noise is keyed by (seed, timestep), so cells differ by nothing but their role, sampler and steps.
It knows nothing about pages, files or how figures are shown.

Cells are made one after the other. The last bits of a batched product differ from those of a single one, so that cells in a batch would no
longer be the clips that `generate` makes, nor would their seconds be true; and on a processor a batch of two saves next to nothing.
"""

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from .conditions import extract, known
from .errors import AppError
from .guides import MAPS_OF, extractor_of
from .judge import has_judge, judge, text_match
from .metrics import (
    depth_error,
    edge_f1,
    feature_distance,
    flicker,
    map_correlation,
    motion,
    motion_ratio,
    motion_warning,
    optical_flow,
    psnr,
    psnr_outside,
)
from .pipeline import SAMPLER_OF, Progress, Result, encode_prompt, generate, one_of, save, settle, told
from .stopwatch import timed
from .students import students
from .world import read_prompt

MAX_CELLS = 8
READERS = {"depth": "builtin-depth", "sketch": "hed-fast"}  # what reads maps back from clips that were made, the same for all of them
FIGURES = {"depth": ("depth error", "depth correlation"), "sketch": ("edge F1",)}
EDGE = 0.35  # of HED's map: what counts as a line


@dataclass(frozen=True)
class Cell:
    """One way to make the clip: whose ("student", "teacher", or the name of a student that was distilled here), a sampler, None for that one's
    own, its number of steps."""

    role: str
    sampler: str | None
    steps: int

    def __str__(self):
        name = f"{self.steps} step{'s' * (self.steps != 1)}" + (f", {self.sampler}" if self.sampler else "")
        return name if self.role == "student" else f"{self.role}, {name}"


REFERENCE = Cell("teacher", "ddim", 50)  # what the paper compares with


@dataclass(frozen=True)
class CellProgress:
    """How far a cell is."""

    cell: Cell
    progress: Progress


@dataclass(frozen=True)
class CellDone:
    """A cell's clip and its figures. It comes again, the same but for the figures, when the reference is there to compare with."""

    cell: Cell
    result: Result
    metrics: dict  # as `measure` and `compared` give them; JSON can hold it

    @property
    def made(self):
        """The Cell with the sampler by name."""
        return replace(self.cell, sampler=self.result.settings["sampler"])

    @property
    def label(self):
        """What stands over the clip: the way it was made, and its network evaluations. No seconds: the same request gives the same file."""
        return f"{self.made}, {self.result.nfe} evaluation{'s' * (self.result.nfe != 1)}"


@dataclass(frozen=True)
class CellStopped:
    """A cell without a clip: because it was in `stopped`, or because of `error`."""

    cell: Cell
    error: AppError | None = None


def compare(models, request, cells, reference=REFERENCE, stopped=frozenset()):
    """Yields CellProgress ..., a CellDone as each cell is ready, and all of them once more after the reference, which comes last.

    models: {role: VideoModel} for the roles of the cells; `reference`: a Cell, made after the others since it takes longest, or None. A cell
    that is put into the set `stopped` ends at its next step. The request's own sampler and steps count for nothing. Closing the generator
    stops everything. AppError as `requests_of`; nothing is made before every cell is known to be possible. A cell whose `generate` raises
    AppError is left out, and the others are made; if that leaves none, the first error is raised.
    """
    asked = requests_of(request, cells, reference)
    for cell, one in asked.items():
        settle(models[cell.role], one)
    prepare, done, failed, shared = Prepared(), {}, [], {}
    for cell, one in asked.items():
        try:
            result = yield from until_stopped(cell, generate(models[cell.role], one, prepare), stopped)
            if result is not None:
                result = written(alone(result, shared.setdefault(models[cell.role].text_encoder, {})))
                done[cell] = CellDone(cell, result, measure(models[cell.role], result) | {"followed": followed(one, result.frames)})
        except AppError as error:
            failed.append(CellStopped(cell, error))
            yield failed[-1]
            continue
        yield done.get(cell, CellStopped(cell))
    if failed and not done:
        raise failed[0].error
    if reference in done:
        yield from (beside(one, done[reference]) for one in done.values())


def row(done, reference):
    """A CellDone as JSON holds it; `reference` is the reference's Cell or None."""
    return {"label": done.label, "reference": done.cell == reference, **told(done.result), "metrics": done.metrics}


def requests_of(request, cells, reference=None):
    """{cell: Request} of the different cells, the reference last if it is none of them. AppError E_CELLS, E_CELL_ROLE, E_SAMPLER, E_STEPS."""
    cells = dict.fromkeys(cells)
    if not 1 <= len(cells) <= MAX_CELLS:
        raise AppError("E_CELLS", given=len(cells), limit=MAX_CELLS)
    cells |= {} if reference is None else {reference: None}
    for cell in cells:
        one_of(cell.role, known_roles(), "E_CELL_ROLE")
    return {cell: replace(request, **way_of(cell, request.gamma)) for cell in cells}


def way_of(cell, gamma):
    """What a Request is told of a cell; `gamma` is for samplers that were asked for by name."""
    sampler, gamma = (cell.sampler, gamma) if cell.sampler else (SAMPLER_OF.get(cell.role), None)
    return {"sampler": sampler, "steps": cell.steps, "gamma": gamma}


def known_roles():
    """Whose clips can be compared: the student's, the teacher's, and those of the students that were distilled here."""
    return [*SAMPLER_OF, *students()]


def model_of(role, ref):
    """(ref, role) of models.load for a Cell's role; `ref` is the model whose student and teacher are meant."""
    return (ref, role) if role in SAMPLER_OF else (role, "student")


class Prepared:
    """`encode_prompt` that encodes once: all cells whose models share a text encoder share its context too. Maps are remembered by conditions.py."""

    def __init__(self):
        self.known = {}

    def __call__(self, model, request):
        if model.text_encoder not in self.known:
            self.known[model.text_encoder] = encode_prompt(model, request)
        return self.known[model.text_encoder]


def until_stopped(cell, events, stopped):
    """Passes the Progress of `generate` on as CellProgress; returns its Result, or None if the cell was stopped."""
    with closing(events):
        for event in events:
            if isinstance(event, Result):
                return event
            if cell not in stopped:
                yield CellProgress(cell, event)
            if cell in stopped:
                return None


def alone(result, shared):
    """`result` with the seconds that text and maps take, also where the cell before had made them: what each cell would take by itself."""
    for stage in ("text", "conditions"):
        shared.setdefault(stage, result.seconds[stage])
    return replace(result, seconds=timed({**result.seconds, **shared}))


def written(result):
    """`result` with the seconds that an mp4 of it takes, 0 where there is no room for one: the files of a comparison hold all cells at once."""
    with suppress(OSError, AppError), TemporaryDirectory(prefix="videolcm-") as folder:
        return save(result, Path(folder) / "clip.mp4")
    return result


# ---- figures


def measure(model, result):
    """What a clip is by itself: motion in pixels per frame, flicker in levels of 255, text_match in 0..1.

    text_match is None where it cannot be known; unmatched then says why, and is None else. The figures that need a reference are None until
    `beside` has one.
    """
    flow = optical_flow(result.frames)
    said = read_prompt(result.settings["prompt"])
    why = unmatched(model, said)
    match = None if why else text_match(judge(), result.frames, said)["mean"]
    own = {"motion": motion(flow), "flicker": flicker(result.frames, flow), "text_match": match, "unmatched": why}
    return own | dict.fromkeys(("motion_ratio", "warning", "psnr", "feature_distance"))


def followed(request, frames):
    """{figure: value} how well frames uint8 (F, H, W, 3) keep to what the request follows; {} for text, None where nothing here reads
    such a map from the clip, or where a figure has no meaning."""
    found = {}
    if request.task == "text":
        return found
    for name in dict.fromkeys((*MAPS_OF[request.task], *request.also)):
        if name == "masked":
            found["PSNR outside"] = psnr_outside(frames, request.video, request.hole > 0)
            continue
        here = [reader for reader in (READERS[name], *known(name)) if reader in known(name) and reader != "as-is"]
        if not here:
            found |= dict.fromkeys(FIGURES[name])
            continue
        wanted = extract("as-is" if extractor_of(name, request) == "as-is" else here[0], request.video)
        found |= obeyed(name, wanted, extract(here[0], frames))
    return found


def obeyed(name, wanted, made):
    """The figures of one kind of map, both (F, H, W) in 0..1."""
    figures = (edge_f1(wanted, made, threshold=EDGE),) if name == "sketch" else (depth_error(wanted, made), map_correlation(wanted, made))
    return dict(zip(FIGURES[name], figures, strict=True))


def unmatched(model, said):
    """Why it cannot be measured how well a clip matches its prompt, as a sentence; None if it can."""
    if not has_judge():
        return "Text match is not available: the judge that measures it is not here yet."
    if model.info.words is None:
        return "Text match is not available: the judge knows the built-in model's world only."
    if not 1 <= len(said[:-1]) <= 2:
        return "Text match is not available: the judge wants a prompt that names one toy or two."
    return None


def beside(done, reference):
    """`done` with its figures relative to the reference, another CellDone or itself.

    motion_ratio: of the reference's motion; warning: a sentence if too little of it is left; psnr: dB, 100 for equal clips;
    feature_distance: 0..4, None where there is no judge.
    """
    ratio = motion_ratio(done.metrics["motion"], reference.metrics["motion"])
    frames, goal = done.result.frames, reference.result.frames
    relative = {
        "motion_ratio": ratio,
        "warning": motion_warning(ratio),
        "psnr": psnr(frames, goal),
        "feature_distance": feature_distance(judge(), frames, goal) if has_judge() else None,
    }
    return replace(done, metrics=done.metrics | relative)
