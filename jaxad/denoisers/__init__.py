"""Networks ``(x, log_snr) -> output``; what the output means is decided in ``jaxad.denoising``."""

from jaxad.denoisers.dit import DiT, dit_b, dit_l, dit_s, dit_xl
from jaxad.denoisers.mlp import MLP
from jaxad.denoisers.time import TimeMLP

__all__ = ["MLP", "DiT", "TimeMLP", "dit_b", "dit_l", "dit_s", "dit_xl"]
