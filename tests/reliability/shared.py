"""What lines share: one Site for all that need nothing special, started by the first of them, and whether seconds are judged."""

import contextlib

from .site import Site

sites = []
clock = {"on": True, "asked": 0}  # off for machines that do other work too; how often a line would have judged seconds


def late(seconds, limit, what):
    """`what` if it took longer than it may, "" if not, or if nobody judges seconds here."""
    clock["asked"] += 1
    return f"{what} after {seconds:.2f} s" if clock["on"] and seconds > limit else ""


def site():
    if sites and sites[0].process.poll() is not None:
        sites.clear()
    if not sites:
        sites.append(Site(SITE_SLOW="" if clock["on"] else "1"))
    return sites[0]


@contextlib.contextmanager
def closed():
    try:
        yield
    finally:
        for one in sites:
            one.close()
