"""The command line's arguments on what a clip follows: files of a video and a mask, and how to use them.

In: argparse declarations and what was typed. Out: an uploads.Material and fields of a Request. It reads no file itself.
"""

from .arguments import number
from .errors import AppError


def guide_arguments(parser):
    """--video and all that goes with it. Ranges are checked where the values are used."""
    parser.add_argument("--video", metavar="IN", help="the video (or picture) that depth, sketch and inpaint follow")
    parser.add_argument("--start", type=number, default=0, metavar="S", help="its second that comes first (default: 0)")
    parser.add_argument(
        "--span", type=number, default=0, metavar="S", help="its seconds that become the clip, 0.5 to 30 (default: as many as it has)"
    )
    parser.add_argument("--fit", default="crop", metavar="NAME", help="crop or pad a video of another shape (default: crop)")
    parser.add_argument("--extractor", metavar="NAME", help="what makes the map: midas, builtin-depth, hed, canny ... (default: the best here)")
    parser.add_argument("--also", metavar="NAME", help="follow one more map: depth or sketch")
    parser.add_argument("--strength", type=number, default=1, metavar="S", help="how strongly maps are followed, 0 to 2 (default: 1)")
    parser.add_argument("--mask", metavar="IN", help="what inpaint replaces: a picture or a video, light = replaced")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="the same as a box, in fractions of the picture from the top left")
    moving = parser.add_mutually_exclusive_group()
    moving.add_argument("--follow", dest="moving", action="store_true", default=True, help="the hole moves with what it covers (default)")
    moving.add_argument("--still", dest="moving", action="store_false", help="the hole stays where it is")
    parser.add_argument("--grow", type=number, default=0, metavar="N", help="make the hole larger by so many pixels, 0 to 64 (default: 0)")
    parser.add_argument("--feather", type=number, default=4, metavar="N", help="soften its outline over so many pixels, 0 to 64 (default: 4)")


def material_of(args):
    """The arguments as a Material. AppError E_BOX, and E_ARGUMENTS for files that the task does not take."""
    from .uploads import Material, box_of

    masks, box = (args.mask,) if args.mask else (), box_of(args.box)
    if args.task == "text" and (args.video or masks or box):
        raise AppError("E_ARGUMENTS", detail="the task text takes no --video, --mask or --box")
    if args.task in ("depth", "sketch") and (masks or box):
        raise AppError("E_ARGUMENTS", detail="only the task inpaint takes --mask or --box")
    used = {name: getattr(args, name) for name in ("start", "span", "fit", "moving", "grow", "feather")}
    return Material(args.video, masks, box, **used)
