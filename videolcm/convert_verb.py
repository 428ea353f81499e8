"""The verb convert of the command line: its arguments, its notes, its JSON. What it does is convert.py's.

In: parsed arguments. Out: a model folder and a dict for the last line of stdout. Heavy imports wait inside.
"""

import json
from pathlib import Path

from .arguments import report
from .errors import AppError

BESIDE = "Put text_encoder/, tokenizer/ and vae/ of Stable Diffusion 2.1 (diffusers' layout, safetensors) into {out} to make clips with it."


def convert_arguments(parser):
    parser.add_argument("checkpoint", metavar="OFFICIAL.pth", help="of VideoLCM or TF-T2V, text or compositional")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="VGen's words for what the tensors do not tell, like head_dim or resolution")
    parser.add_argument("--role", metavar="ROLE", help="student or teacher (default: teacher if the file is called tft2v... or has 4 input channels)")


def run_convert(args):
    """Convert; returns what was found and what is still missing."""
    if args.role not in (None, "student", "teacher"):
        raise AppError("E_ROLE", given=args.role)
    config = read_config(args.config) if args.config else None
    from .convert import LICENCE, convert
    from .models.latent import PARTS

    report(f"Licence of the weights: {LICENCE}.")
    manifest = convert(args.checkpoint, args.out, config, args.role)
    missing = [part for part in PARTS if not (args.out / part).is_dir()]
    if missing:
        report(BESIDE.format(out=args.out))
    return {"out": str(args.out), **manifest, "missing": missing}


def read_config(path):
    """The JSON object in a file. AppError E_INPUT, E_VGEN_CONFIG."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AppError("E_INPUT", given=path.name) from error
    except ValueError as error:
        raise AppError("E_VGEN_CONFIG", detail="the file is not JSON") from error
    if not isinstance(config, dict):
        raise AppError("E_VGEN_CONFIG", detail="the file holds no object")
    return config
