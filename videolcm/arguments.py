"""Command lines whose every refusal is one line: `[CODE] what is wrong. What to do.` and exit code 2.

In: argparse declarations and a function to run. Out: an exit code. Numbers stay what was typed if they are none, so that the code
which knows their range refuses them. It knows nothing about verbs, models or pages.
"""

import argparse
import sys

from .errors import AppError, one_line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises AppError E_ARGUMENTS instead of printing its usage; abbreviated options are refused."""

    def __init__(self, **options):
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message):
        raise AppError("E_ARGUMENTS", detail=message)


def refuse(*cases):
    """AppError E_ARGUMENTS with the sentence of the first of the (wrong, sentence) that is wrong."""
    for wrong, detail in cases:
        if wrong:
            raise AppError("E_ARGUMENTS", detail=detail)


def report(line):
    """Progress and sentences for people: stdout is for the JSON object."""
    print(line, file=sys.stderr, flush=True)


def number(text):
    """What was typed as an int or float, or the text itself where it is neither."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def positive(value, name, most=10**9, least=1):
    """A whole number from 1, or from `least`. AppError E_NUMBER."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise AppError("E_NUMBER", name=name, range=f"a whole number from {least}" + (f" to {most}" if most < 10**9 else ""), given=value)
    return value


def between(value, name, low, high):
    """A number in low..high. AppError E_NUMBER."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise AppError("E_NUMBER", name=name, range=f"a number from {low} to {high}", given=value)
    return value


def skips_of(text):
    """ "100,20" as (100, 20). AppError E_NUMBER."""
    values = [number(part) for part in one_line(text).split(",")]
    for value in values:
        if not isinstance(value, int) or not 1 <= value <= 999:
            raise AppError("E_NUMBER", name="skip", range="a whole number from 1 to 999, or several with commas", given=text)
    return tuple(values)


def range_of(text, name="guidance-range", most=30, kind=float):
    """ "0,4" as (0.0, 4.0), two of `kind`; None stays None. AppError E_NUMBER."""
    if text is None:
        return None
    values, known = [number(part) for part in one_line(text).split(",")], (int, kind)
    if len(values) != 2 or any(not isinstance(value, known) for value in values) or not 0 <= values[0] < values[1] <= most:
        numbers = "whole numbers" if kind is int else "numbers"
        raise AppError("E_NUMBER", name=name, range=f"two ascending {numbers} from 0 to {most} with a comma", given=text)
    return kind(values[0]), kind(values[1])


def timesteps_of(text):
    """ "500,900" as (500, 900), which are timesteps 500 <= t < 900; None stays None. AppError E_NUMBER."""
    return range_of(text, "guided", 1000, int)


def exit_code(run):
    """Call `run()`: 0, 2 with one line on stderr for an AppError, 130 for Ctrl-C."""
    try:
        run()
    except AppError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0
