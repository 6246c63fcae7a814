"""``jaxad fit`` on one device, on several, or as one of several processes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Devices:
    """Where a training runs."""

    devices: Literal["one", "all", "cut"] | None = None
    """one: the first device. all: every device takes its part of a batch. cut: as all, with the state of the training cut over them, for
    networks that fill one. Default: one, or all of several processes."""
    coordinator: str | None = None
    """Run as one of several processes: host:port at which process 0 is reached, or auto where Slurm, Open MPI, Kubernetes or a TPU pod
    says who is who."""
    processes: int | None = None
    """Their number, with host:port."""
    process_id: int | None = None
    """The number of this one, from 0, with host:port."""
    lost_after: float = 60.0
    """Seconds without a sign of life after which a process counts as lost and the others stop."""

    def joined(self) -> AbstractContextManager:
        """The context in which this process is one of several."""
        from jaxad.runtime.distributed import joined

        if self.coordinator is None and (self.processes, self.process_id) != (None, None):
            raise ValueError("--processes and --process-id need --coordinator host:port, the address of process 0")
        if self.coordinator is not None and self.devices == "one":
            raise ValueError("--devices one: several processes train on all of their devices, choose all or cut")
        if self.coordinator is None:
            return nullcontext()
        address = None if self.coordinator == "auto" else self.coordinator
        return joined(address, self.processes, self.process_id, timeout=self.lost_after)

    def settings(self, detector: str, has: Any) -> dict[str, Any]:
        """What a detector with the parameters ``has`` is to be told."""
        from jaxad.runtime.sharding import data_mesh

        if self.coordinator is None and self.devices in (None, "one"):
            return {}
        wanted = {"mesh": data_mesh()} | ({"shard_parameters": True} if self.devices == "cut" else {})
        if missing := [name for name in wanted if name not in has]:
            raise ValueError(
                f"--devices, --coordinator: {detector} has no {missing[0]}, it is fitted on one device"
                + ("" if "mesh" in missing else " or on copies of its state: choose --devices all")
            )
        return wanted


ONE_DEVICE = Devices()
