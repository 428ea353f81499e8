"""The knobs of distilling, as the page and the command line have them.

In: values that people gave, which check themselves. Out: Knobs; as a command line; with a teacher, the DistillConfig that it is trained by. It knows
nothing about processes, files or networks.
"""

from dataclasses import dataclass, fields, replace

from .arguments import between, positive, range_of, skips_of, timesteps_of
from .errors import AppError, one_line

CONDITIONS = ("text", "depth", "sketch", "masked")
OPTIMISERS = ("adamw", "muon")
PRESETS = {  # what they change of Knobs' defaults; in minutes two cores do so many iterations, and the rate comes to its end
    "one minute look": {"iterations": 18, "batch": 8, "minutes": 1, "clips": 50, "preview_every": 20},
    "ten minutes": {"iterations": 90, "batch": 16, "minutes": 10, "clips": 200},
    "paper": {"iterations": 4000, "lr": 1e-5, "ema": 0.95, "guidance": 9.0, "guided": "0,1000", "skip": "20", "huber": 1e-3, "optimiser": "adamw"},
}


@dataclass(frozen=True)
class Knobs:
    """The method's knobs, as `distill` on the command line takes them; None is the teacher's own, or no limit. AppError for what is out of range."""

    iterations: int = 1000
    batch: int = 16
    lr: float | None = None
    optimiser: str | None = None
    guidance: float | None = None
    ema: float = 0.95
    skip: str | None = None
    huber: float | None = None
    seed: int = 0
    minutes: float | None = None
    clips: int = 600
    conditions: str = "text,depth,sketch,masked"
    preview_every: float | None = 60
    images: float | None = None  # share of pictures in a batch of own clips
    lora: int | None = None  # rank of adapters that learn in place of the weights
    guidance_range: str | None = None  # "LOW,HIGH": w as an input of the student
    two_time: bool = False
    as_shown: bool = False  # channels of latents count as much as pictures show of them
    accumulate: int = 1
    solver_steps: int = 1  # of the teacher for each of a skip
    own: float = 0.0  # share of a batch that begins where the student goes itself
    guided: str | None = None  # "LOW,HIGH": the timesteps at which the teacher is guided
    object_weight: float = 0.0  # added to the loss where objects are
    seam_weight: float = 0.0  # of what pictures change by where half seconds meet
    matching: float = 0.0  # weight of distribution matching in the loss

    def __post_init__(self):
        for name in ("iterations", "batch", "clips", "accumulate", "solver_steps"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        limits = {"ema": (0, 1), "own": (0, 1), "object_weight": (0, 100), "seam_weight": (0, 100), "matching": (0, 100)}
        for name, (low, high) in limits.items():
            between(getattr(self, name), name, low, high)
        limits = {"lr": (0, 1), "guidance": (0, 30), "huber": (1e-9, 10), "minutes": (0, 1e6), "preview_every": (0, 1e6), "images": (0, 1)}
        for name, (low, high) in limits.items():
            if getattr(self, name) is not None:
                between(getattr(self, name), name, low, high)
        object.__setattr__(self, "seed", positive(self.seed, "seed", 2**31 - 1, least=0))
        for name in ("two_time", "as_shown"):
            if not isinstance(getattr(self, name), bool):
                raise AppError("E_NUMBER", name=name, range="true or false", given=getattr(self, name))
        if self.lora is not None:
            object.__setattr__(self, "lora", positive(self.lora, "lora", 1024))
        if self.optimiser not in (None, *OPTIMISERS):
            raise AppError("E_OPTIMISER", given=self.optimiser, known=", ".join(OPTIMISERS))
        if self.skip is not None:
            skips_of(self.skip)
        conditions_of(self.conditions), range_of(self.guidance_range), timesteps_of(self.guided)

    def arguments(self):
        """The knobs as a command line."""
        values = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        return [text for name, value in given.items() for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]


def conditions_of(text):
    """ "text,depth" as ("text", "depth"). AppError E_CONDITIONS for other names, or none."""
    names = tuple(part.strip() for part in one_line(text).split(","))
    if not set(names) <= set(CONDITIONS):
        raise AppError("E_CONDITIONS", known=", ".join(CONDITIONS), given=text)
    return names


def preset_of(name):
    """What a preset decides. AppError E_PRESET."""
    if not isinstance(name, str) or name not in PRESETS:
        raise AppError("E_PRESET", given=name, known=", ".join(PRESETS))
    return PRESETS[name]


def config_of(knobs, teacher):
    """What the knobs leave open is decided by the teacher."""
    from .distill import DistillConfig

    own = DistillConfig(**{"guidance": teacher.info.guidance, "guided": teacher.info.guided, **teacher.distilling})
    asked = {
        "lr": knobs.lr,
        "optimiser": knobs.optimiser,
        "guidance": knobs.guidance,
        "skips": knobs.skip and skips_of(knobs.skip),
        "huber": knobs.huber,
        "guided": timesteps_of(knobs.guided),
    }
    return replace(
        own,
        **{name: value for name, value in asked.items() if value is not None},
        iterations=knobs.iterations,
        batch=knobs.batch,
        ema=knobs.ema,
        seed=knobs.seed,
        conditions=conditions_of(knobs.conditions),
        accumulate=knobs.accumulate,
        lora=knobs.lora,
        w_range=range_of(knobs.guidance_range),
        two_time=knobs.two_time,
        as_shown=knobs.as_shown,
        solver_steps=knobs.solver_steps,
        share_own=knobs.own,
        object_weight=knobs.object_weight,
        seam_weight=knobs.seam_weight,
        matching=knobs.matching,
    )
