"""Networks ``(x, log_snr) -> output``; what the output means is decided in ``jaxad.denoising``."""

from jaxad.denoisers.dit import DiT, dit_b, dit_l, dit_s, dit_small_28, dit_xl
from jaxad.denoisers.mlp import MLP
from jaxad.denoisers.time import TimeMLP
from jaxad.denoisers.unet import UNet, unet_28, unet_64, unet_128, unet_224, unet_small_28

__all__ = [
    "MLP",
    "DiT",
    "TimeMLP",
    "UNet",
    "dit_b",
    "dit_l",
    "dit_s",
    "dit_small_28",
    "dit_xl",
    "unet_28",
    "unet_64",
    "unet_128",
    "unet_224",
    "unet_small_28",
]
