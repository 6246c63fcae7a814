"""The 57 data sets of ADBench (Han et al., NeurIPS 2022), read from a folder and fetched on request.

The paper counts 47 classical tables, 5 image sets as 512 ResNet-18 features and 5 text sets as 768 BERT features. Most
image and text sets are published in parts, one file per normal class, so there are 121 files in all. They are not part
of this package: point ``data_dir`` (or the environment variable ``JAXAD_DATA_DIR``) at a folder with
``adbench/<group>/<name>.npz``, or pass ``download=True``.
"""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from jaxad.data.arrays import read_npz
from jaxad.data.dataset import DataError, Dataset, did_you_mean, refuse_non_finite
from jaxad.data.sources import download as download_file

COMMIT = "3dac8221081e190f157d78e93bfa8867f90d0965"
URL = f"https://raw.githubusercontent.com/Minqi824/ADBench/{COMMIT}/adbench/datasets"

# Numbered from 1, as their files are: 1_ALOI ... 47_yeast.
_CLASSICAL = tuple(
    """
    ALOI annthyroid backdoor breastw campaign cardio Cardiotocography celeba census cover
    donors fault fraud glass Hepatitis http InternetAds Ionosphere landsat letter
    Lymphography magic.gamma mammography mnist musk optdigits PageBlocks pendigits Pima satellite
    satimage-2 shuttle skin smtp SpamBase speech Stamps thyroid vertebral vowels
    Waveform WBC WDBC Wilt wine WPBC yeast
    """.split()  # noqa: SIM905 (a line each would bury the list)
)
_CORRUPTIONS = tuple(
    """
    brightness canny_edges dotted_line fog glass_blur identity impulse_noise motion_blur
    rotate scale shear shot_noise spatter stripe translate zigzag
    """.split()  # noqa: SIM905
)
_PRODUCTS = tuple(
    """
    bottle cable capsule carpet grid hazelnut leather metal_nut
    pill screw tile toothbrush transistor wood zipper
    """.split()  # noqa: SIM905
)

ADBENCH_GROUPS = {
    "Classical": tuple(f"{number}_{name}" for number, name in enumerate(_CLASSICAL, start=1)),
    "CV_by_ResNet18": (
        *(f"CIFAR10_{label}" for label in range(10)),
        *(f"FashionMNIST_{label}" for label in range(10)),
        *(f"MNIST-C_{corruption}" for corruption in _CORRUPTIONS),
        *(f"MVTec-AD_{product}" for product in _PRODUCTS),
        *(f"SVHN_{label}" for label in range(10)),
    ),
    "NLP_by_BERT": (
        *(f"20news_{label}" for label in range(6)),
        *(f"agnews_{label}" for label in range(4)),
        *("amazon", "imdb", "yelp"),
    ),
}
ADBENCH_NAMES = tuple(name for names in ADBENCH_GROUPS.values() for name in names)

_GROUP_OF = {name: group for group, names in ADBENCH_GROUPS.items() for name in names}
_SHORT_NAMES = (*_CLASSICAL, *ADBENCH_GROUPS["CV_by_ResNet18"], *ADBENCH_GROUPS["NLP_by_BERT"])
# What a user may write, in lower case: the file name, and for the classical sets the name without its number.
_CANONICAL = {name.lower(): name for name in ADBENCH_NAMES}
_CANONICAL |= {name.lower(): f"{number}_{name}" for number, name in enumerate(_CLASSICAL, start=1)}

# Of the sets we hold, computed with content_digest; the repository publishes none. Compression and dtype do not enter.
DIGESTS = {
    "1_ALOI": "d331d7582ba4c3126fee85c1552bb105a00a00bbcb146d9342366d1acb16915d",
    "4_breastw": "62be2bae2f8b8e1bb50c49692a8c650ba0f135fb4f408f51f66623c766fbdb12",
    "5_campaign": "3dfd7d6b7ae08028fcd5f5057603f31a5003a61d6131acbce25793876af1b436",
    "6_cardio": "d79a19e11406bd040dc5c6d7f15484b9929b4fc8176a35513ac7900727b57a71",
    "7_Cardiotocography": "11c50723e1f9f459d8e42ea2db82d965f57782a08c967a1a884b0f6f3c45384a",
    "8_celeba": "65d18df79923ec81af456f23a3b5d918317e833b8aacaa160bb03b5eaded62f2",
    "10_cover": "22a8e130d3d70efdc90b0a8e1d932897562e78d5bce33cd4be1870b03054a3e0",
    "11_donors": "4ed86d2a550af476e529dfe160bcd734cd631a82da596a148cfece5a34d3f988",
    "15_Hepatitis": "b50cb6a955bb901d12c929ea44cab32e37880e0db5735b5e18ba89ca0786004b",
    "16_http": "de8c292abc0eda4bffc15fcbecc97edd7399a4293293d55731c9cab2b6dff9df",
    "17_InternetAds": "c6fd922309fd8071f2294cf78b246f0a34aedd7652e4de11ea348eecb739ca7c",
    "18_Ionosphere": "17792957f56246e914faf6010d940090141405b22fe2f17858f8de82cfc89175",
    "19_landsat": "c7f65574f82a5c05897bd3f7d526815b8e16054617fe5e42222d182eaaca62ad",
    "21_Lymphography": "1311b085fb7b692874a996af4d46d7a67d0aa52294a3d1f6e1f54e169b2e42b4",
    "23_mammography": "fb1054800718aea82e4253dc73e2038c03713cd7b47b4652ab90680fa89251a8",
    "24_mnist": "4e53ed890dcd79cc9b89b7b5fe1adb46e3ead732409e58656e3882ccbab2cdb5",
    "26_optdigits": "4565e0e6f184a9df96a4e7f311d877d9686cefaa37786129278e1fc9f2f13d5d",
    "28_pendigits": "4f9a40e4107a1d1852f3991c0e058e9309b14d3a2983cac842a4e24cd5ef1f59",
    "29_Pima": "e6d56d9678eed39629c03b2b55d230b272f3192bf723b54fd78bb0bb28f7999d",
    "31_satimage-2": "0efad988dc2c883985874e3697d8af110b431b49708e3e4cd8988f914e75959d",
    "33_skin": "18d402328a808da7312c88f584c8e316befaa486067ffd572f5ad83ee75488b0",
    "34_smtp": "144abc75a17f393acab1a1883c770fcf80de9cfd7d452fef975cf1c335fbc2f9",
    "37_Stamps": "daf957f88c101295235ecf33319d95aef6d4b5d94c5b4133c7143e1cd25c6097",
    "38_thyroid": "14d21115518fe6d5ac61b62571774073af1fd5b7c6c57b223804ee237c50098f",
    "39_vertebral": "a15ac042ba02de6078e393a1631fef9b6f1eb5adc80da54cc0ee3ba15433b0b1",
    "42_WBC": "e9c70e7afdec0d0ae80b80d7dd93f715c8b9266028660a9c445af89aabd3ddb3",
    "43_WDBC": "f3fd8170081d4ddcfb584ca2500188502aecd90db0e39a46e7776a7b2eeb224f",
    "44_Wilt": "15f53ea44217cf719380958bac02e3660d875babb07886521513e64995301c98",
    "45_wine": "d01a0d6a82bbbb0cf31a2e1517db6b02c5cc2bd24790b30244a4ac00e388c5ee",
    "47_yeast": "9a307dac8d7538caf82adfb727adba39ca654db4d9817c9cf422c191f0cdc195",
    "CIFAR10_4": "a26be4e2bc215b9efbcf1a60e5dc78303c6519fb53c2e11ce8be12909efbff7a",
    "CIFAR10_6": "31aa298a4016f5c8df3e9e25718f6fc17a7284afdab3fa4459bef42b64183b87",
    "MVTec-AD_bottle": "b2333f76f2a5d65cc7f18d9e6415e0d97622b66c02d2546cd556b582eb4b6025",
    "MVTec-AD_cable": "badb8d741fc51d946006d8c50d675b2f5e52dc4179c62ede52fae31cac284078",
    "MVTec-AD_capsule": "bd9259a31456d9c3aa15c8139b55652f479c8317c8b0dcc564327225d0f58229",
    "MVTec-AD_carpet": "cb4a8e4e6c2365fc81546880282ddf3e142ee87c4c5d5d37af00a60120698741",
    "MVTec-AD_grid": "b45513aee5e3b5e4ee634f081c896c4050f620bd43916f570a2f181938404247",
    "MVTec-AD_leather": "91e12104444f042415202811905d29b44c4b93a70156d534319f3db17ab5e1a2",
    "MVTec-AD_metal_nut": "39e30f5c40724ce823883b9350f6a52776b700b84b7d6316aefc77b0f168006f",
    "MVTec-AD_pill": "bd9fd3be7f77a33924f7f3c83ef69f110a452184a40b936a1035c321ea37a413",
    "MVTec-AD_tile": "5cc3f37aba5750fb2120d14335c8886c2966eb934b6ba743f8654a51f5b12e25",
    "MVTec-AD_zipper": "3e9a17ff7d63d99714431a873197341fdb3504f591ea6def93c7914dab542737",
}


def adbench(name: str, data_dir: str | os.PathLike | None = None, *, download: bool = False) -> Dataset:
    """One ADBench set as published: rows in file order, labels 0 normal and 1 anomalous, missing values as NaN.

    ``name`` is a file name or, for the classical sets, the name without its number, in any case: ``"6_cardio"``,
    ``"Cardio"``, ``"CIFAR10_4"`` (of the CIFAR-10 classes, number 4 is the normal one). ``Dataset.name`` is always the
    file name. ``data_dir`` holds ``adbench/<group>/<name>.npz``; None means the environment variable
    ``JAXAD_DATA_DIR``, or else ``~/.cache/jaxad``. With ``download`` a missing file is fetched into it from the ADBench
    repository at one fixed commit; its content is compared with a known digest, and a set without one comes with a
    warning.

    ``Dataset.source`` names the commit only if the content has the digest that is known for it.

    Raises ``DataError`` for an unknown name, a file that is missing, cannot be fetched or holds something else, and
    infinite values.

    >>> adbench("cardioo")
    Traceback (most recent call last):
    jaxad.data.dataset.DataError: unknown ADBench set 'cardioo'; did you mean 'cardio' or 'Cardiotocography'?
    """
    canonical = adbench_name(name)
    group = _GROUP_OF[canonical]
    path = _data_dir(data_dir) / "adbench" / group / f"{canonical}.npz"
    if not path.is_file():
        if not download:
            raise DataError(
                f"ADBench set {canonical}: no file {path}; pass download=True to fetch it, or the right data_dir"
            )
        download_file(f"{URL}/{group}/{canonical}.npz", path, verify=lambda file: _verify(file, canonical))
    x, y = _read(path)
    known = DIGESTS.get(canonical) == content_digest(x, y)
    source = f"ADBench {group} @ {COMMIT[:7]}" if known else f"ADBench {group}, content not verified"
    return Dataset(canonical, x, y, source)


def adbench_name(name: str) -> str:
    """The file name that ``name`` stands for; raises ``DataError`` naming the nearest known set.

    >>> adbench_name("cardio"), adbench_name("cifar10_4")
    ('6_cardio', 'CIFAR10_4')
    """
    canonical = _CANONICAL.get(str(name).lower())
    if canonical is None:
        raise DataError(f"unknown ADBench set {name!r}; {did_you_mean(str(name), _SHORT_NAMES)}")
    return canonical


def adbench_names(data_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The sets whose files are in ``data_dir`` (found as by ``adbench``), in the order of ``ADBENCH_NAMES``."""
    folder = _data_dir(data_dir) / "adbench"
    return tuple(name for name in ADBENCH_NAMES if (folder / _GROUP_OF[name] / f"{name}.npz").is_file())


def content_digest(x: np.ndarray, y: np.ndarray) -> str:
    """SHA-256 of the numbers in ``x`` ``[rows, features]`` and ``y`` ``[rows]``, whatever their dtype and memory order.

    >>> x, y = np.array([[1, 0], [3, 4]]), np.array([0, 1])
    >>> content_digest(x, y) == content_digest(np.asfortranarray(x, dtype=np.float32), y.astype(np.int8))
    True
    """
    digest = hashlib.sha256(f"{x.shape}{y.shape}".encode())
    values = (
        np.ascontiguousarray(x, dtype="<f8") + 0.0
    )  # -0.0 + 0.0 is 0.0: files that keep integers cannot tell them apart
    values[np.isnan(values)] = np.nan
    digest.update(values.data)
    digest.update(np.ascontiguousarray(y, dtype="<i8").data)
    return digest.hexdigest()


def _data_dir(data_dir: str | os.PathLike | None) -> Path:
    return Path(os.path.expanduser(data_dir or os.environ.get("JAXAD_DATA_DIR") or "~/.cache/jaxad"))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = read_npz(path)
    if y is None:
        raise DataError(f"{path}: expected labels under the key 'y', but there are none; fetch the file again")
    refuse_non_finite(x, str(path), allow_nan=True)
    return x, y


def _verify(path: Path, name: str) -> None:
    found = content_digest(*_read(path))
    if name not in DIGESTS:
        warnings.warn(
            f"ADBench set {name}: no digest is known for it, its content is unverified ({found=})", stacklevel=4
        )
    elif found != DIGESTS[name]:
        raise DataError(
            f"ADBench set {name}: expected content with digest {DIGESTS[name]}, got {found}; "
            "the file was changed on its way, try again later or from another network"
        )
