"""Networks of Toybox small enough for tests, with random weights where training would have left none at zero, and invented clips."""

import torch
from safetensors.torch import save_file

from videolcm.data import Clips, latent_path
from videolcm.models.base import ModelInfo
from videolcm.models.codec import Codec, CodecConfig
from videolcm.models.denoiser import Denoiser, DenoiserConfig
from videolcm.models.toybox import TextConfig, TextEncoder, Toybox
from videolcm.schedule import Schedule
from videolcm.shipping import ship
from videolcm.world import plot

WORDS = ("a", "ball", "blue", "cube", "grass", "on", "red", "rolls", "snow")
CODEC = CodecConfig(latent=4, widths=(16, 12, 8), blocks=(1, 1, 1))
TEXT = TextConfig(words=WORDS, width=16, heads=2, depth=1, length=10)
DENOISER = DenoiserConfig(
    latent=4, context=16, width=32, depth=1, heads=2, hidden=96, stem=16, fine=8, maps=8, backdrop=16, frames=8, frames_depth=1, frames_coarse=(8, 8)
)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian(mean, deviation):
    """The denoiser of a world whose every number is drawn from N(mean, deviation^2): the mean of x0 given x_t."""
    schedule = Schedule()

    def denoise(x_t, t, cond):
        alpha, sigma = schedule.alpha_sigma(t, x_t)
        return mean + alpha * deviation**2 / ((alpha * deviation) ** 2 + sigma**2) * (x_t - alpha * mean)

    return denoise


def awake(net, seed=0):
    """`net` with everything that starts at zero drawn at random, so that every input can reach the output."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            if not p.any():
                p.copy_(0.2 * randn(1000 * seed + i, *p.shape))
    return net


def codec(seed=0):
    torch.manual_seed(seed)
    net = awake(Codec(CODEC)).eval()
    net.basis.copy_(torch.linalg.qr(randn(seed, net.basis.shape[1], CODEC.latent))[0].T)
    return net


def text(seed=1):
    torch.manual_seed(seed)
    return TextEncoder(TEXT).eval()


def denoiser(seed=2):
    torch.manual_seed(seed)
    return awake(Denoiser(DENOISER), seed).eval()


def toybox(role="student", dtype=torch.float32):
    info = ModelInfo("tiny", role, ("text",), 2.0, 8, "0" * 64, frozenset(WORDS))
    nets = [net.to(dtype).requires_grad_(False) for net in (codec(), text(), denoiser())]
    return Toybox(info, *nets, "cpu", dtype)


def clips(count=6, f=2, side=4):
    """Clips as the cache has them, with noise for content: latents (N, 4, f, side, side) and maps four times as large, 4 f frames."""
    g = torch.Generator().manual_seed(7)
    maps = (count, 4 * f, 4 * side, 4 * side)
    bytes_of = {name: torch.randint(0, 256, (*maps, *more), generator=g, dtype=torch.uint8) for name, more in SHAPES.items()}
    ids = torch.zeros(maps, dtype=torch.uint8)
    ids[:, :, 5:9, 6:11] = 255
    made = Clips.__new__(Clips)
    made.arrays = {"latents": torch.randn((count, 4, f, side, side), generator=g).half(), "ids": ids, **bytes_of}
    made.plots = [plot(seed) for seed in range(count)]
    return made


def teacher_folder(folder):
    """A folder that the door loads, with a teacher and a student."""
    for part, make in {"codec": codec, "text": text, "teacher": denoiser, "student": lambda: denoiser(9)}.items():
        ship(folder, part, make())
    return folder


def data_folder(folder):
    """A folder of cached clips."""
    folder.mkdir()
    save_file(clips().arrays, latent_path(folder, "plain", 0))
    return folder


SHAPES = {"depth": (), "edges": (), "rgb": (3,)}
