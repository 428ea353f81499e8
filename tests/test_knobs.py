"""The knobs of distilling: what is refused, presets, and every one of them as an argument and as the configuration of a run."""

from argparse import Namespace
from dataclasses import replace

import pytest
import tiny

from videolcm.__main__ import VERBS, parser_of
from videolcm.errors import AppError
from videolcm.knobs import PRESETS, Knobs, conditions_of, config_of
from videolcm.models.toybox import Toybox
from videolcm.train_verbs import distill_namespace, knobs_of


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_knobs_and_knobs_are_arguments(preset):
    knobs = Knobs(**PRESETS[preset])
    args = parser_of(VERBS).parse_args(["distill", *knobs.arguments()])
    assert knobs_of(args) == knobs and isinstance(args, Namespace)


def test_every_knob_is_an_argument():
    knobs = Knobs(lora=4, guidance_range="0.5,3", two_time=True, as_shown=True, accumulate=2, images=0.5, guidance=1.0, solver_steps=2, own=0.5)
    knobs = replace(knobs, guided="500,900", object_weight=3.0, seam_weight=2.0, matching=0.3)
    assert knobs_of(parser_of(VERBS).parse_args(["distill", *knobs.arguments()])) == knobs
    config = config_of(knobs, tiny.toybox("teacher"))
    assert (config.lora, config.w_range, config.two_time, config.as_shown, config.inputs) == (4, (0.5, 3.0), True, True, ("w", "s"))
    assert (config.accumulate, config.solver_steps, config.share_own) == (2, 2, 0.5)
    assert (config.guided, config.object_weight, config.seam_weight, config.matching) == ((500, 900), 3.0, 2.0, 0.3)
    assert (config.lr, config.optimiser, config.skips, config.guidance) == (Toybox.distilling["lr"], "muon", (100,), 1.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_on_the_command_line_gives_way_to_what_is_said_beside_it(preset):
    of_preset = Knobs(**{"preview_every": None, **PRESETS[preset]})
    assert knobs_of(distill_namespace(["--preset", preset])) == of_preset
    assert knobs_of(distill_namespace(["--iterations", "1000", "--preset", preset, "--two-time"])) == replace(
        of_preset, iterations=1000, two_time=True
    )
    assert knobs_of(distill_namespace([])) == Knobs(preview_every=None)
    with pytest.raises(AppError) as error:
        distill_namespace(["--preset", "an hour"])
    assert error.value.code == "E_PRESET"


def test_the_paper_is_the_papers():
    paper = Knobs(**PRESETS["paper"])
    assert (paper.iterations, paper.lr, paper.ema, paper.guidance, paper.skip, paper.huber) == (4000, 1e-5, 0.95, 9.0, "20", 1e-3)
    assert paper.optimiser == "adamw"


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        *(("E_NUMBER", {"iterations": value}) for value in (0, -1, 2.5, True, "4", None, float("nan"), 10**5000)),
        *(("E_NUMBER", {"lr": value}) for value in (-1, float("inf"), float("nan"), "x", True)),
        *(("E_NUMBER", {"skip": value}) for value in ("", "0", "20;100", "1000", "20,", 10**5000)),
        *(("E_CONDITIONS", {"conditions": value}) for value in ("", "music", "text,", "text;depth", None, 10**5000)),
        ("E_NUMBER", {"ema": 2}),
        *(("E_NUMBER", {"lora": value}) for value in (0, 1025, 2.5, "x", True)),
        *(("E_NUMBER", {"guidance_range": value}) for value in ("", "3", "0,31", 4, [10**5000])),
        *(("E_NUMBER", {"two_time": value}) for value in ("yes", 1, None)),
        ("E_NUMBER", {"accumulate": 0}),
        ("E_NUMBER", {"solver_steps": 0.5}),
        ("E_NUMBER", {"own": 2}),
        *(("E_NUMBER", {"guided": value}) for value in ("1000", "-1,5", "2.5,9", "900,500", "0,1001", True)),
        ("E_NUMBER", {"object_weight": -1}),
        ("E_NUMBER", {"seam_weight": 101}),
        ("E_NUMBER", {"matching": -1}),
        ("E_NUMBER", {"guidance": 31}),
        ("E_NUMBER", {"huber": 0}),
        *(("E_NUMBER", {"seed": value}) for value in (2.5, -1)),
    ],
)
def test_bad_knobs(code, bad):
    with pytest.raises(AppError) as error:
        Knobs(**bad)
    assert error.value.code == code


def test_conditions_are_names():
    assert conditions_of("text, depth") == ("text", "depth")
