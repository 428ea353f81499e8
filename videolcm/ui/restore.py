"""Back from a file that was made here to the controls that make it again.

In: an mp4, GIF or PNG, from anybody. Out: {control: value} for the comparison's tab, every value checked by the Request it describes.
It knows nothing about components or how clips are made.
"""

from pathlib import Path

from videolcm.errors import AppError
from videolcm.students import NAME, students
from videolcm.ui.tab import MAX_STEPS

ASKED = ("prompt", "steps", "seed", "frames", "height", "width", "sampler", "guidance", "gamma")  # of a Request, what a file's settings say


def restored(path):
    """The controls' values {name: value} that make again what is in the file at `path`: a grid's cells, or one clip.

    The video that a clip followed is in no file and must be given again. AppError E_INPUT, E_NO_SETTINGS, E_SETTINGS for what the controls
    cannot say, and as Request.
    """
    from videolcm.video import read_settings

    name = Path(path).name
    try:
        settings = read_settings(path)
        cells = settings.get("cells", [settings])
        pairs = [(request_in(cell), role_in(cell)) for cell in cells]
        followed = followed_in(cells[0]) if cells else {}
    except AppError as error:
        raise AppError(error.code, given=name) if error.code in ("E_INPUT", "E_NO_SETTINGS") else error from None
    except (KeyError, TypeError, ValueError):
        raise AppError("E_NO_SETTINGS", given=name) from None
    if not pairs:
        raise AppError("E_NO_SETTINGS", given=name)
    return controls_of(pairs) | followed


def request_in(settings):
    """The Request that a file's settings describe but for what it follows. KeyError or TypeError where they are none; AppError as Request."""
    from videolcm.pipeline import Request

    return Request(**{name: settings[name] for name in ASKED})


def role_in(settings):
    """Whose clip it was, as a Cell has it. KeyError; AppError E_ROLE, and E_MODEL for a student that is no longer here."""
    from videolcm.pipeline import SAMPLER_OF, one_of

    one_of(settings["role"], SAMPLER_OF, "E_ROLE")
    name = settings.get("model")
    if not str(name).startswith(NAME):
        return settings["role"]
    one_of(name, students(), "E_MODEL")
    return name


def followed_in(settings):
    """The controls' values of how a clip follows its video. KeyError, TypeError or ValueError where there are none; AppError E_TASK, E_EXTRACTOR,
    E_STRENGTH, E_FIT, E_NUMBER."""
    from videolcm.conditions import EXTRACTORS
    from videolcm.models.base import TASKS
    from videolcm.pipeline import one_of, within

    task, extractor = settings["task"], settings["extractor"]
    one_of(task, TASKS, "E_TASK")
    if extractor is not None:
        one_of(extractor, EXTRACTORS, "E_EXTRACTOR")
    strength = within(settings["strength"], 0, 2, "E_STRENGTH")
    values = {"task": task, "extractor": extractor or "", "strength": strength, "also": bool(settings["also"])}
    return values | (used_in(settings["material"]) if settings.get("material") else {})


def used_in(told):
    """The controls' values of what uploads.Material.told says. Errors as `followed_in`."""
    from videolcm.footage import FITS
    from videolcm.pipeline import one_of
    from videolcm.uploads import outline_pixels

    one_of(told["fit"], FITS, "E_FIT")
    values = {"start": float(told["start"]), "span": float(told["span"]), "fit": told["fit"]}
    if "box" in told:
        outline = {name: outline_pixels(name, told[name]) for name in ("grow", "feather")}
        values |= {"box": ",".join(str(float(part)) for part in told["box"] or ()), "moving": bool(told["moving"]), **outline}
    return values


def controls_of(pairs):
    """The controls' values for [(Request, role)] that differ in role, sampler and steps alone; many steps: the reference. AppError E_SETTINGS."""
    first = pairs[0][0]
    if any(
        (one.prompt, one.seed, one.frames, one.height, one.width) != (first.prompt, first.seed, first.frames, first.height, first.width)
        for one, _ in pairs
    ):
        raise AppError("E_SETTINGS", detail="its cells differ in more than model, sampler and steps")
    cells = [(one, role) for one, role in pairs if one.steps <= MAX_STEPS]
    many = [(one, role) for one, role in pairs if one.steps > MAX_STEPS]
    if len(many) > 1 or any((role, one.sampler) != ("teacher", "ddim") for one, role in many):
        raise AppError("E_SETTINGS", detail=f"more than {MAX_STEPS} steps are for one reference alone, the teacher by ddim")
    gammas = {one.gamma for one, _ in pairs if one.gamma is not None}
    if len(gammas) > 1:
        raise AppError("E_SETTINGS", detail="its cells have several gammas")
    values = {"prompt": first.prompt, "seed": first.seed, "frames": first.frames, "size": f"{first.width}x{first.height}"}
    values |= {"with_reference": bool(many), "gamma": gammas.pop() if gammas else 0.3, "guidance": shared_guidance(pairs)}
    if many:
        values["reference_steps"] = many[0][0].steps
    if cells:
        values["steps"] = sorted({one.steps for one, _ in cells})
        values["samplers"] = list(dict.fromkeys(one.sampler for one, _ in cells))
        values["roles"] = list(dict.fromkeys(role for _, role in cells))
    return values


def shared_guidance(pairs):
    """The guidance that was asked for as its box has it, "" if each model had its own: then student and teacher differ, or a student's is 0."""
    asked = {one.guidance for one, _ in pairs}
    own = len(asked) > 1 or (asked == {0.0} and all(role == "student" for _, role in pairs))
    return "" if own else str(asked.pop())
