"""Clips that a student in training makes of one prompt and seed in 1, 2 and 4 steps, beside its teacher's: to see it learn.

In: the teacher and the averaged weights. Out: small mp4s in the run folder, and their names for the log. Noise is keyed by (seed, timestep),
so the training's random sources are not touched. It knows nothing about losses.
"""

from pathlib import Path

from .errors import AppError
from .pipeline import Request, generate, save

PROMPT, SEED, STEPS = "a red ball rolls to the left over snow", 0, (1, 2, 4)
TEACHER = "preview-teacher.mp4"


class Previews:
    """A Stage's `validate`: called with (averaged denoiser, folder, iteration). `info` is the student's, `turn()` the device for one clip."""

    def __init__(self, teacher, info, turn):
        self.teacher, self.info, self.turn = teacher, info, turn

    def __call__(self, net, out, iteration):
        """{"previews": {steps: file name}}, or {"error": why there are none}: a preview that fails is no reason to stop."""
        student = self.teacher.with_denoiser(net)
        student.info = self.info
        names = {steps: f"preview-{iteration:08d}-{steps}.mp4" for steps in STEPS}
        try:
            if not (Path(out) / TEACHER).exists():
                self.clip(self.teacher, Request(PROMPT, seed=SEED, sampler="ddim"), Path(out) / TEACHER)
            for steps, name in names.items():
                self.clip(student, Request(PROMPT, steps=steps, seed=SEED), Path(out) / name)
        except AppError as error:
            return {"error": str(error)}
        return {"previews": names}

    def clip(self, model, request, path):
        with self.turn():
            *_, result = generate(model, request)
        save(result, path)
