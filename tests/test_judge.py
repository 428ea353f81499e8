"""The judge's arithmetic with a judge whose answers are prepared, what it gets to see, and the labels that it learns from."""

import numpy as np
import pytest
import torch
from torch import nn

from videolcm.judge import LOOK_FRAMES, LOOK_SIZE, Judge, look, text_match
from videolcm.pretrain_judge import flipped, shown_labels, turned, worn
from videolcm.world import ATTRIBUTES, OBJECT_ATTRIBUTES, SCENE_ATTRIBUTES, Plot, Toy, plot

BALL = {"shape": "sphere", "colour": "red", "material": "shiny", "size": "small", "motion": "left"}
CUBE = {"shape": "cube", "colour": "blue", "material": "matte", "size": "big", "motion": "right"}
SCENE = {"floor": "snow", "sky": "night"}
FRAMES = np.zeros((16, 32, 32, 3), np.uint8)


class Prepared(nn.Module):
    """A judge that sees what it is told: one dict for the left object, one for the right (or None), one for the scene."""

    def __init__(self, left, right=None, scene=SCENE):
        super().__init__()
        slots = {0: left, 1: right}
        keys = [(name, slot) for name in OBJECT_ATTRIBUTES for slot in (0, 1)]
        seen = {(name, slot): ATTRIBUTES[name].index(slots[slot][name]) if slots[slot] else len(ATTRIBUTES[name]) for name, slot in keys}
        seen |= {(name, 2): ATTRIBUTES[name].index(scene[name]) for name in SCENE_ATTRIBUTES}
        self.logits = {key: nn.functional.one_hot(torch.tensor([value]), 12).float() for key, value in seen.items()}

    def forward(self, clips):
        assert clips.shape == (1, 8, 3, 128, 128)
        return self.logits


def test_one_object_that_is_all_right():
    assert text_match(Prepared(BALL), FRAMES, (BALL, SCENE)) == dict.fromkeys([*ATTRIBUTES, "mean"], 1.0)


def test_one_object_with_two_faults():
    share = text_match(Prepared({**BALL, "colour": "blue"}, scene={"floor": "snow", "sky": "day"}), FRAMES, (BALL, SCENE))
    assert share == {**dict.fromkeys(ATTRIBUTES, 1.0), "colour": 0.0, "sky": 0.0, "mean": pytest.approx(5 / 7)}


def test_one_object_is_not_looked_for_on_the_right():
    assert text_match(Prepared(CUBE, BALL), FRAMES, (BALL, {}))["mean"] == 0


@pytest.mark.parametrize("said", [(BALL, CUBE, SCENE), (CUBE, BALL, SCENE)])
def test_two_objects_count_either_way_round(said):
    assert text_match(Prepared(BALL, CUBE), FRAMES, said)["mean"] == 1
    share = text_match(Prepared(BALL, {**CUBE, "colour": "pink"}), FRAMES, said)
    assert share["colour"] == 0.5 and share["shape"] == 1 and share["mean"] == pytest.approx(11 / 12)


def test_attributes_are_not_picked_from_both_ways_round():
    mixed = {**BALL, "shape": "cube"}, {**CUBE, "shape": "sphere"}  # colours one way round, shapes the other
    share = text_match(Prepared(*mixed), FRAMES, (BALL, CUBE, {}))
    assert share["shape"] == 0 and share["colour"] == 1 and share["mean"] == pytest.approx(0.8)


def test_the_second_of_two_objects_is_missed_when_it_is_not_there():
    assert text_match(Prepared(BALL), FRAMES, (BALL, CUBE, SCENE))["mean"] == pytest.approx(7 / 12)


def test_only_what_was_said_counts():
    wrong = Prepared({**CUBE, "shape": "sphere"}, scene={"floor": "sand", "sky": "day"})
    assert text_match(wrong, FRAMES, ({"shape": "sphere"}, {})) == {"shape": 1, "mean": 1}
    assert text_match(wrong, FRAMES, ({"shape": "sphere", "colour": "red"}, {"sky": "day"})) == {
        "shape": 1,
        "colour": 0,
        "sky": 1,
        "mean": pytest.approx(2 / 3),
    }


def counting(step, batch, count, height, width):
    """Clips whose frame i is `step` times i throughout."""
    return np.full((batch, count, height, width, 3), step, np.uint8) * np.arange(count, dtype=np.uint8)[:, None, None, None]


def test_the_judge_sees_every_second_of_sixteen_frames_at_its_size():
    frames = counting(10, 2, 16, 256, 192)
    seen = look(frames)
    assert seen.shape == (2, LOOK_FRAMES, 3, LOOK_SIZE, LOOK_SIZE) == (2, 8, 3, 128, 128)
    assert ((seen[1, :, 0, 5, 5] + 1) * 12.75).round().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("count", [8, 10, 32])
def test_other_lengths_are_seen_from_the_first_frame_almost_to_the_last(count):
    frames = counting(5, 1, count, 128, 128)
    seen = ((look(frames)[0, :, 0, 0, 0] + 1) * 25.5).round().tolist()
    assert len(seen) == 8 and seen[0] == 0 and seen[-1] >= 0.9 * (count - 1) - 0.5 and seen == sorted(seen) and len(set(seen)) == 8


def test_looking_averages_and_keeps_channels_and_sides():
    frames = np.zeros((1, 16, 256, 256, 3), np.uint8)
    frames[..., :128, 2] = 255  # blue on the left
    frames[..., ::2, :, 0] = 255  # red in every second row
    seen = look(frames)[0, 0]
    assert (seen[2, :, :64] == 1).all() and (seen[2, :, 64:] == -1).all() and (seen[0].abs() < 1e-6).all() and (seen[1] == -1).all()


def test_the_real_judge_answers_every_question():
    torch.manual_seed(0)
    share = text_match(Judge().eval(), FRAMES, (BALL, CUBE, SCENE))
    assert set(share) == {*ATTRIBUTES, "mean"} and all(0 <= value <= 1 for value in share.values())


# ---- labels


def labelled(*toys, floor="snow", sky="night"):
    return shown_labels(Plot(tuple(Toy(**toy) for toy in toys), floor, sky, "", ()))


def test_labels_say_what_is_seen():
    labels = labelled(BALL, CUBE)
    assert {key: ATTRIBUTES[key[0]][value] for key, value in labels.items()} == {
        **{(name, 0): value for name, value in BALL.items()},
        **{(name, 1): value for name, value in CUBE.items()},
        **{(name, 2): value for name, value in SCENE.items()},
    }
    assert all(labelled(BALL)[name, 1] == len(ATTRIBUTES[name]) for name in OBJECT_ATTRIBUTES)


def test_labels_are_those_the_judge_answers():
    labels, answers = labelled(BALL), Judge().eval()(look(FRAMES[None]))
    assert answers.keys() == labels.keys()
    assert all(labels[key] < logits.shape[1] for key, logits in answers.items())


def test_flipping_twice_changes_nothing():
    for seed in range(100):
        labels = shown_labels(plot(seed))
        assert flipped(flipped(labels)) == labels


def test_left_becomes_right_and_the_two_objects_change_places():
    assert flipped(labelled(BALL)) == labelled({**BALL, "motion": "right"})
    assert flipped(labelled(BALL, CUBE)) == labelled({**CUBE, "motion": "left"}, {**BALL, "motion": "right"})
    still = {**CUBE, "motion": "still"}
    assert flipped(labelled(still)) == labelled(still)


def test_backwards_left_is_right_and_closer_is_away():
    """And the picture too: what comes last comes first."""
    clip = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = labelled({**BALL, "motion": "left"}, {**CUBE, "motion": "closer"})
    seen, told = turned(clip, labels, mirrored=False, backwards=True)
    assert torch.equal(seen, clip.flip(0)) and told == labelled({**BALL, "motion": "right"}, {**CUBE, "motion": "away"})
    seen, told = turned(clip, labels, mirrored=True, backwards=True)
    assert torch.equal(seen, clip.flip(0, 3)) and told == labelled({**CUBE, "motion": "away"}, {**BALL, "motion": "left"})
    assert turned(clip, labels, False, False) == (clip, labels)


def test_what_the_judge_is_taught_on_is_moved_by_a_few_pixels_at_most():
    clip = torch.zeros(2, 3, 64, 64)
    clip[:, :, 30:34, 30:34] = 1
    places = [(worn(clip, np.random.default_rng(seed))[0, 0] > 0.5).nonzero().float().mean(0).numpy() - 31.5 for seed in range(20)]
    down, right = np.abs(places).max(0)
    assert 2 < down <= 4.6 and 5 < right <= 8.6
