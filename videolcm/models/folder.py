"""A folder in diffusers' layout around a UNet3DConditionModel, as a VideoModel: one that `convert` wrote, ModelScope's, and students of both.

In: unet/, scheduler/, text_encoder/, tokenizer/, vae/ (what a student lacks lies with its base), for converted ones also manifest.json, and
conditions/ where the checkpoint has encoders. Out: a FolderModel; and the other way, a network as such a folder. It knows nothing about official
names, hubs or pages.
"""

import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers import DDIMScheduler, LCMScheduler, UNet3DConditionModel

from ..checkpoint import read_weights, require_finite, sha256_of, write_json, write_weights
from ..errors import AppError
from . import facts_of, fill
from .base import Learned, ModelInfo
from .latent import PARTS, LatentModel, component, digest_of, load_parts, read_config, ready, require_fit, schedule_of
from .vgen import NEGATIVE_PROMPT, PROMPT_SUFFIX, VGenConfig, build, depth_map

GUIDANCE = 9.0  # w of the teacher (Sec. 4.1)
FPS = 8
FILES = {"unet": "unet/diffusion_pytorch_model.safetensors", "conditions": "conditions/model.safetensors"}
TASK_OF = {"depth": "depth", "sketch": "sketch", "masked": "inpaint"}  # encoder: the task that it makes possible
LEARNED = {
    "depth": Learned("dpt-large", "MiDaS DPT-Large", scale=depth_map),
    "sketch": Learned("pidinet", "PiDiNet behind a simplifying network", exact=False),
}
COMMON = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


class FolderModel(LatentModel):
    """A UNet3DConditionModel, alone or in a VideoUNet with its encoders. The rate and the even draw of timesteps are the paper's (Sec. 4.1)."""

    @property
    def learned(self):
        return {name: told for name, told in LEARNED.items() if TASK_OF[name] in self.info.tasks}

    def predict(self, x_t, t, cond):
        maps = cond.maps()
        if not isinstance(self.denoiser, UNet3DConditionModel):
            return self.denoiser(x_t, t.float(), cond.context, **maps)
        if maps:
            raise AppError("E_CONDITION", given=next(iter(maps)), known="none")
        return self.denoiser(x_t, t, cond.context, return_dict=False)[0]


def tasks_of(config):
    """The tasks that a network of this VGenConfig can do."""
    return ("text", *(task for encoder, task in TASK_OF.items() if encoder in config.encoders))


def scheduler_of(role):
    """diffusers' scheduler with the official settings: LCM for a student; DDIM from 981 down to 1 for a teacher."""
    if role == "student":
        return LCMScheduler(**COMMON)
    return DDIMScheduler(**COMMON, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)


def index_of(role):
    """What stock diffusers reads first of a folder that is to be loaded whole, with what is placed beside the network."""
    libraries = {"unet": UNet3DConditionModel, "scheduler": type(scheduler_of(role)), **PARTS}
    named = {part: [kind.__module__.partition(".")[0], kind.__name__] for part, kind in libraries.items()}
    return {"_class_name": "TextToVideoSDPipeline", **named}


# ---- folder -> model


def load_folder(name, folder, base, manifest, places, role, device, dtype):
    """The model in `folder`, whose text encoder and autoencoder lie in `base`, the folder itself or that of its teacher.

    manifest, places as `models.read_manifest` gives them. AppError E_ROLE_MODEL for the other role, E_MODEL_PARTS, E_SCHEDULER, E_MODEL_FILE,
    E_CHECKPOINT, E_CHECKPOINT_KEYS.
    """
    if role != manifest["role"]:
        raise AppError("E_ROLE_MODEL", model=folder.name, role=manifest["role"])
    official = manifest["kind"] == "vgen"
    schedule = schedule_of(COMMON if official else read_config(base, "scheduler/scheduler_config.json"))
    parts = load_parts(base, device, dtype)
    net = read_network(places, manifest) if official else read_unet(base, manifest, places)
    width, channels = (net.config.context_dim, net.config.in_dim) if official else (net.config.cross_attention_dim, net.config.in_channels)
    require_fit(folder, parts, width, channels)
    whole = (folder / "manifest.json").is_file()  # with the sha256 of every file in it
    info = ModelInfo(name, role, **facts_of(manifest), sha256=sha256_of(folder / "manifest.json") if whole else digest_of({"": folder}))
    texts = (PROMPT_SUFFIX, NEGATIVE_PROMPT) if official else ("", "")
    return FolderModel(info, parts, ready(net, device, dtype), *schedule, device, dtype, *texts)


def read_network(places, manifest):
    """The VideoUNet of a converted folder, in the number format of its files, after a check of every byte."""
    net, weights = build(VGenConfig(**manifest["config"])), {}
    for part, file in FILES.items():
        if part in manifest["files"]:
            tensors = read_weights(places[part] / file, manifest["files"][part]["sha256"])
            weights |= {f"unet.{name}" if part == "unet" else name: value for name, value in tensors.items()}
    fill(net, weights, FILES["unet"])
    return net


def read_unet(base, manifest, places):
    """The UNet3DConditionModel of a folder in diffusers' layout; a student's is its base's with other weights, after a check of every byte."""
    net = component(base, "unet", UNet3DConditionModel)
    if "unet" in manifest["files"]:
        fill(net, read_weights(places["unet"] / FILES["unet"], manifest["files"]["unet"]["sha256"]), FILES["unet"])
    return net


# ---- network -> folder


def write_parts(net, scheduler, folder):
    """Writes unet/ and scheduler/, which stock diffusers loads, and conditions/ where `net` has encoders; returns the manifest's files."""
    alone = isinstance(net, UNet3DConditionModel)
    (net if alone else net.unet).save_pretrained(folder / "unet", max_shard_size="1TB")
    scheduler.save_pretrained(folder / "scheduler")
    extra = {} if alone else {name: value for name, value in net.state_dict().items() if not name.startswith("unet.")}
    if extra:
        (folder / "conditions").mkdir()
        write_weights(folder / FILES["conditions"], extra)
        write_json(folder / "conditions" / "config.json", asdict(net.config))
    return {part: {"file": file, "sha256": sha256_of(folder / file)} for part, file in FILES.items() if (folder / file).exists()}


def write_student(net, base, out):
    """Writes a student of the model in the folder `base` into `out`, file by file over an earlier one; returns what its manifest says.

    Its scheduler is the teacher's as LCM. AppError E_DISK, E_NOT_FINITE.
    """
    require_finite("student", net.state_dict())
    scheduler = LCMScheduler.from_config(read_config(base, "scheduler/scheduler_config.json"), set_alpha_to_one=True)
    try:
        with TemporaryDirectory(prefix=".student-", dir=out) as temporary:
            files = write_parts(net, scheduler, Path(temporary))
            for path in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
                place = Path(out) / path.relative_to(temporary)
                place.parent.mkdir(exist_ok=True)
                os.replace(path, place)
    except OSError as error:
        raise AppError("E_DISK", given="unet") from error
    return {"role": "student", "files": files}
