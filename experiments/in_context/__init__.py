"""A denoiser that is told what is normal by rows beside it, and the synthetic tables it learns from: for ``experiments.pretrain``."""
