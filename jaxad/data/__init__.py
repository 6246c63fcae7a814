"""Data on the host: every reader returns a ``Dataset`` or ``ImageDataset`` of numpy arrays, or says why not."""

from jaxad.data.adbench import ADBENCH_GROUPS, ADBENCH_NAMES, adbench, adbench_name, adbench_names, content_digest
from jaxad.data.builtin import BUILTIN, breast_cancer, builtin, digits, wine
from jaxad.data.dataset import DataError, Dataset, did_you_mean, refuse_non_finite
from jaxad.data.encoder import FrameEncoder
from jaxad.data.folders import read_defects, read_folder, read_mvtec
from jaxad.data.frame_files import dialect_of, read_frame, table_columns
from jaxad.data.images import ImageDataset, read_image
from jaxad.data.pipeline import ImageBatches, PictureFiles, image_batches
from jaxad.data.roles import roles_of
from jaxad.data.suites import MNIST_C, magnetic_tile, mnist_c, one_vs_rest
from jaxad.data.table_files import read_table, table_blocks
from jaxad.data.tiles import TileGrid, stitch, tiles

__all__ = [
    "ADBENCH_GROUPS",
    "ADBENCH_NAMES",
    "BUILTIN",
    "MNIST_C",
    "DataError",
    "Dataset",
    "FrameEncoder",
    "ImageBatches",
    "ImageDataset",
    "PictureFiles",
    "TileGrid",
    "adbench",
    "adbench_name",
    "adbench_names",
    "breast_cancer",
    "builtin",
    "content_digest",
    "dialect_of",
    "did_you_mean",
    "digits",
    "image_batches",
    "magnetic_tile",
    "mnist_c",
    "one_vs_rest",
    "read_defects",
    "read_folder",
    "read_frame",
    "read_image",
    "read_mvtec",
    "read_table",
    "refuse_non_finite",
    "roles_of",
    "stitch",
    "table_blocks",
    "table_columns",
    "tiles",
    "wine",
]
