"""Anomaly generation: ``(key, denoise, x, ...) -> Generated(x, mask, kind)``, pure functions over a trained denoiser.

Rows out for rows in: ``x`` are normal rows, on the scale the denoiser was trained on. Everything is a function of the key and composes with
``jit`` and ``vmap``; compile a generator once and every later batch of that shape costs its evaluations alone.

- ``strength``: more widely than normal rows lie (``sdas``, ``measured_variance``)
- ``guided``: where normal rows are rare (``low_density``, ``minority``, ``detector_guided``)
- ``typed``: ``dependency_anomalies``, ``point_anomalies``, ``cluster_anomalies``, ``global_anomalies``
- ``images``: inside a mask, the rest to the bit (``redrawn``, ``harmonised``, ``blended``, ``cut_paste``); ``masks`` for them
- ``few_shot``: like 1 to 10 real anomalies of each kind (``adapt``, then ``few_shot``), inside a mask
- ``counterfactual``: the nearest normal version of an anomaly (``repair``), and the other way (``nearest_anomaly``)
- ``happenings``: things that happen to sensors, in time series, which need no denoiser either (``make_events``)
- ``controls``: ADBench's recipes and NNG-Mix, which need no denoiser
"""

from jaxad.generation.controls import ADBENCH_KINDS, adbench_synthetic, nng_mix
from jaxad.generation.counterfactual import Counterfactual, element_error, nearest_anomaly, repair
from jaxad.generation.few_shot import Adapters, adapt, describe, few_shot
from jaxad.generation.generated import Generated, Kind, check_examples, several
from jaxad.generation.happenings import HAPPENINGS, MadeSeries, make_events
from jaxad.generation.low_density import (
    RowScore,
    band_targets,
    detector_guided,
    low_density,
    minority,
    minority_guided,
    reach,
    tempered,
    until,
)
from jaxad.generation.masked import blended, cut_paste, harmonised, redrawn
from jaxad.generation.masks import foreground, masks_from_examples, perlin_masks, perlin_noise
from jaxad.generation.strength import measured_variance, sdas, strengthened
from jaxad.generation.typed import (
    cluster_anomalies,
    dependency_anomalies,
    global_anomalies,
    point_anomalies,
    random_columns,
)

__all__ = [
    "ADBENCH_KINDS",
    "HAPPENINGS",
    "Adapters",
    "Counterfactual",
    "Generated",
    "Kind",
    "MadeSeries",
    "RowScore",
    "adapt",
    "adbench_synthetic",
    "band_targets",
    "blended",
    "check_examples",
    "cluster_anomalies",
    "cut_paste",
    "dependency_anomalies",
    "describe",
    "detector_guided",
    "element_error",
    "few_shot",
    "foreground",
    "global_anomalies",
    "harmonised",
    "low_density",
    "make_events",
    "masks_from_examples",
    "measured_variance",
    "minority",
    "minority_guided",
    "nearest_anomaly",
    "nng_mix",
    "perlin_masks",
    "perlin_noise",
    "point_anomalies",
    "random_columns",
    "reach",
    "redrawn",
    "repair",
    "sdas",
    "several",
    "strengthened",
    "tempered",
    "until",
]
