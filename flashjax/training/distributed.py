"""Many processes, one program: ``jax.distributed`` set up from flags, a launcher, SLURM, Open MPI or a TPU pod.

Order in which a process finds its peers when ``cluster`` is "auto": the flags below, the ``FLASHJAX_*`` variables that
``python -m flashjax.launch`` sets, SLURM, Open MPI, TPU. Finding none of them is a run of one process. JAX reads SLURM,
Open MPI and TPU itself; this room checks that what it will read is whole, since a half-set cluster otherwise ends in a
wrong rank or in minutes of silence.
"""

import ctypes
import glob
import importlib.util
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

EXIT_PEER_LOST = 76
"""Exit status of a process that ends because another one died or fell silent. Resuming is safe."""
EXIT_STALLED = 77
"""Exit status when every process is alive but a step no longer advances. Resuming may stall again."""
EXIT_PEER_FAILED = 78
"""Exit status of a process that ends because another one raised an error. Resuming will likely raise it again."""
EXIT_RESUMABLE = (130, 143)
"""Exit statuses of a run that saved its state because it was asked to stop (SIGINT, SIGTERM)."""

ENVIRONMENT = {
    "coordinator": "FLASHJAX_COORDINATOR",
    "num_processes": "FLASHJAX_NUM_PROCESSES",
    "process_id": "FLASHJAX_PROCESS_ID",
}
"""Variables that a launcher sets, by the field they fill."""

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")


@dataclass(frozen=True)
class DistributedConfig:
    """How this process finds the others, and how long it waits for them."""

    cluster: Literal["auto", "none", "flags", "tpu", "slurm", "mpi"] = "auto"
    """Who knows the other processes: found out (auto), nobody (none: one process), the three fields below or the
    launcher's variables (flags), a TPU pod, SLURM, or Open MPI."""
    coordinator: str | None = None
    """host:port on which process 0 listens."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Number of this process, from 0."""
    start_timeout_s: int = 300
    """Longest wait for all processes to appear."""
    silence_limit_s: float = 60.0
    """A process that shows no sign of life for this long is lost, and the others end."""
    stall_limit_s: float = 1800.0
    """All processes alive, but one without a new step for this long: all end. The first step has four times as long."""
    shutdown_timeout_s: int = 300
    """Longest wait at the end for the slowest process to finish."""


@dataclass(frozen=True)
class Ending:
    """Why a process ends, and with which exit status."""

    status: int
    text: str
    stacks: bool = False
    """Whether each process prints its Python stacks: they show where a stalled one stands."""


def initialize(config: DistributedConfig) -> None:
    """Join the other processes. Call it once, before any JAX computation; one process: nothing happens.

    Afterwards ``jax.devices()`` holds the devices of all processes. CPU devices of several processes talk over Gloo.
    If not all appear in time, the process ends with status 76 and a message that says who waited, and for what.

    Raises:
        ValueError: if flags or the cluster's variables contradict each other or are not all there.
        RuntimeError: if it is called twice, or after JAX has started its devices.
    """
    arguments = resolve(config, os.environ)
    if arguments is None:
        return
    if jax.distributed.is_initialized():
        raise RuntimeError("jax.distributed is set up already: call flashjax.training.distributed.initialize once")
    if "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    deadline = time.monotonic() + config.start_timeout_s
    if arguments.get("process_id") and not _await_coordinator(arguments["coordinator_address"], deadline):
        end_process(_nobody_came(config, arguments))
    # jaxlib aborts the process, without naming anyone, when its registration times out.
    guard = AbortGuard(lambda: _nobody_came(config, arguments))
    guard.install()
    try:
        jax.distributed.initialize(
            **arguments,
            # JAX tries twice, each time for so long.
            initialization_timeout=max(1, int(deadline - time.monotonic()) // 2),
            # The watchdog speaks first, since it names the process; JAX's own limit is the net below it.
            heartbeat_timeout_seconds=int(max(100, 2 * config.silence_limit_s)),
            shutdown_timeout_seconds=config.shutdown_timeout_s,
        )
    except ValueError as error:
        if config.cluster != "tpu":
            raise
        raise ValueError(f"cluster 'tpu' was asked for, but JAX finds no TPU pod here: {error}") from error
    finally:
        guard.remove()
    global _jax_sigterm
    _jax_sigterm = _installed_handler(signal.SIGTERM)


def client() -> Any:
    """The key-value store that all processes share, or None in a run of one process.

    JAX offers no public way to it; Orbax and Flax reach it the same way.
    """
    from jax._src import distributed

    return distributed.global_state.client


def process_id() -> int:
    """Number of this process, without starting JAX's devices as ``jax.process_index`` would."""
    from jax._src import distributed

    return distributed.global_state.process_id


def num_processes() -> int:
    """How many processes there are, without starting JAX's devices as ``jax.process_count`` would."""
    from jax._src import distributed

    return distributed.global_state.num_processes


def coordinator() -> str | None:
    """host:port of process 0, as ``jax.distributed`` knows it, or None in a run of one process."""
    from jax._src import distributed

    return distributed.global_state.coordinator_address


def abandon() -> None:
    """Leave the others without waiting for them: for a process that fails while they are in the middle of a step.

    JAX would otherwise hold the process at exit until all have come to the same end, which they cannot.
    """
    from jax._src import distributed

    state = distributed.global_state
    for held in (state.client, state.service, state.preemption_sync_manager):
        if held is not None:
            # Never destroyed: its destructor would wait too.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    state.client = state.service = state.preemption_sync_manager = None


_jax_sigterm: int | None = None
"""Address of the SIGTERM handler that JAX's preemption service has installed."""


def request_stop() -> None:
    """Make ``multihost_utils.reached_preemption_sync_point`` true at one and the same step in all processes.

    JAX listens for SIGTERM at C level, and a handler set with ``signal.signal`` takes that away from it without a
    word. A Python handler must therefore call this; it may also be called for SIGINT. One process: nothing happens.
    """
    if _jax_sigterm:
        ctypes.CFUNCTYPE(None, ctypes.c_int)(_jax_sigterm)(int(signal.SIGTERM))


def resolve(config: DistributedConfig, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments for ``jax.distributed.initialize``, or None for a run of one process.

    Raises:
        ValueError: naming the values, if they contradict each other or some are missing.
    """
    given = {name: getattr(config, name) for name in ENVIRONMENT if getattr(config, name) is not None}
    if config.cluster == "none":
        if given:
            raise ValueError(f"cluster 'none' is a run of one process, but {_spell(given)} is given: drop one of them")
        return None
    from_launcher = {variable: environ[variable] for variable in ENVIRONMENT.values() if variable in environ}
    if config.cluster == "flags" or (config.cluster == "auto" and (given or from_launcher)):
        return _from_flags(given, from_launcher)
    if config.cluster in ("slurm", "mpi", "tpu") and given.keys() - {"coordinator"}:
        raise ValueError(
            f"cluster {config.cluster!r} numbers the processes itself, but {_spell(given)} is given: "
            "drop it, or use cluster 'flags'"
        )
    address = _address(config.coordinator, "coordinator") if config.coordinator else None
    if config.cluster == "slurm" or (config.cluster == "auto" and "SLURM_JOB_ID" in environ):
        return _from_slurm(environ, address, asked=config.cluster == "slurm")
    if config.cluster == "mpi" or (config.cluster == "auto" and any(name in environ for name in _OPEN_MPI)):
        return _from_open_mpi(environ, address)
    if config.cluster == "tpu" or _on_tpu(environ):
        return {} if address is None else {"coordinator_address": address}
    return None


def _from_flags(given: dict[str, Any], from_launcher: dict[str, str]) -> dict[str, Any] | None:
    values = dict(given)
    for name, variable in ENVIRONMENT.items():
        if name not in values and variable in from_launcher:
            text = from_launcher[variable]
            values[name] = text if name == "coordinator" else _integer(text, variable)
    missing = [f"{name} (or {variable})" for name, variable in ENVIRONMENT.items() if name not in values]
    if missing:
        raise ValueError(
            f"{_spell(given | from_launcher) or 'cluster flags'} is given, but not {', '.join(missing)}: "
            "several processes need all three"
        )
    count, number = values["num_processes"], values["process_id"]
    if count < 1 or not 0 <= number < count:
        raise ValueError(
            f"process_id {number} with num_processes {count}: process_id counts from 0 and is less than num_processes"
        )
    address = _address(values["coordinator"], "coordinator")
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _from_slurm(environ: Mapping[str, str], address: str | None, asked: bool) -> dict[str, Any] | None:
    missing = [name for name in _SLURM if not environ.get(name)]
    tasks = _integer(environ.get("SLURM_NTASKS") or "1", "SLURM_NTASKS")
    if missing:
        # A shell inside an allocation (salloc, a batch script without srun) has the job's variables, not a step's.
        if tasks == 1 and not asked:
            return None
        found = _spell({name: environ[name] for name in _SLURM if environ.get(name)}) or "none of the others"
        raise ValueError(
            f"SLURM variables are half there: {', '.join(missing)} missing, found {found}. Start the program with srun "
            "(python -m flashjax.launch slurm writes such a script), or use cluster 'none' for one process"
        )
    rank = _integer(environ["SLURM_PROCID"], "SLURM_PROCID")
    if not 0 <= rank < tasks:
        raise ValueError(f"SLURM_PROCID={rank} with SLURM_NTASKS={tasks}: the rank must be less than the task count")
    if tasks == 1:
        return None
    arguments: dict[str, Any] = {"cluster_detection_method": "slurm"}
    if address:
        arguments["coordinator_address"] = address
    # JAX gives task i of a node its GPU i alone; a node's only task must have all of them.
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if environ.get("SLURM_STEP_NUM_NODES") == str(tasks) and gpus.isdigit() and int(gpus) > 1:
        arguments["local_device_ids"] = list(range(int(gpus)))
    return arguments


def _from_open_mpi(environ: Mapping[str, str], address: str | None) -> dict[str, Any] | None:
    missing = [name for name in _OPEN_MPI if not environ.get(name)]
    if missing:
        found = _spell({name: environ[name] for name in _OPEN_MPI if environ.get(name)}) or "none of the others"
        raise ValueError(
            f"Open MPI variables are half there: {', '.join(missing)} missing, found {found}. Start the program with "
            "mpirun, or use cluster 'flags'"
        )
    size, rank, local_rank = (_integer(environ[name], name) for name in _OPEN_MPI)
    if not 0 <= rank < size:
        raise ValueError(f"OMPI_COMM_WORLD_RANK={rank} with OMPI_COMM_WORLD_SIZE={size}: the rank must be less")
    if size == 1:
        return None
    if address is None and "OMPI_MCA_orte_hnp_uri" in environ:
        return {"cluster_detection_method": "ompi"}
    if address is None:
        raise ValueError(
            f"Open MPI 5 no longer tells its {size} processes where the first one runs: give coordinator as host:port "
            "of rank 0, the same in all"
        )
    return {
        "coordinator_address": address,
        "num_processes": size,
        "process_id": rank,
        "local_device_ids": [local_rank],
        "cluster_detection_method": "deactivate",
    }


def _on_tpu(environ: Mapping[str, str]) -> bool:
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return False
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _address(text: str, name: str) -> str:
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(?P<port>\d+)", text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{name} {text!r} is not host:port with a port from 1 to 65535, such as 10.0.0.1:8476")
    return text


def _integer(text: str, name: str) -> int:
    if not re.fullmatch(r"\s*-?\d+\s*", text):
        raise ValueError(f"{name}={text!r} is not a whole number")
    return int(text)


def _spell(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _await_coordinator(address: str, deadline: float) -> bool:
    """Whether process 0 answers before the deadline. gRPC would look again only after pauses of up to two minutes."""
    host, _, port = address.rpartition(":")
    while True:
        unknown: socket.gaierror | None = None
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            return True
        except socket.gaierror as error:
            unknown = error  # A pod's name appears some time after the pod.
        except OSError:
            pass
        if time.monotonic() > deadline:
            if unknown is None:
                return False
            raise ValueError(
                f"the coordinator's host {host!r} has no address ({unknown.strerror}): "
                "correct the coordinator's name, or wait longer with start_timeout_s"
            ) from unknown
        time.sleep(0.2)


def _nobody_came(config: DistributedConfig, arguments: Mapping[str, Any]) -> Ending:
    number, count = arguments.get("process_id", "?"), arguments.get("num_processes", "?")
    where = arguments.get("coordinator_address", f"the coordinator that {config.cluster} names")
    return Ending(
        EXIT_PEER_LOST,
        f"process {number} of {count} waited {config.start_timeout_s} s (start_timeout_s) for all processes to meet at "
        f"{where}, and they did not: is each of them running, and is the port open between the hosts?",
    )


_libc = ctypes.CDLL(None)
_libc.signal.restype = ctypes.c_void_p
_libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]


def _installed_handler(signum: int) -> int | None:
    """Address of the C handler of a signal, None for the default one."""
    address = _libc.signal(signum, None)
    _libc.signal(signum, address)
    return address


class AbortGuard:
    """Gives jaxlib's abort a message and a status of ours.

    When the coordinator dies, jaxlib calls ``abort`` from a thread of its own within milliseconds; Python's signal
    handlers never run then, since they wait for the main thread. A handler at C level does. ``explain`` says why the
    process ends, or None if the abort has another cause and shall take its course.
    """

    def __init__(self, explain: Callable[[], Ending | None]):
        self._explain = explain
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._handle)
        self._previous: int | None = None
        self._installed = False

    def install(self) -> None:
        address = ctypes.cast(self._callback, ctypes.c_void_p)
        self._previous = _libc.signal(int(signal.SIGABRT), address)
        self._installed = True

    def remove(self) -> None:
        if self._installed:
            _libc.signal(int(signal.SIGABRT), self._previous)
            self._installed = False

    def _handle(self, signum: int) -> None:
        self.remove()
        ending = self._explain()
        if ending is not None:
            end_process(ending)


def end_process(ending: Ending) -> None:
    """Say why, and leave at once: the main thread may be inside a collective that never returns."""
    import faulthandler
    import multiprocessing
    import sys
    import threading

    host = socket.gethostname()
    line = f"flashjax: this process ({host}) ends with status {ending.status}: {ending.text}\n"
    os.write(2, line.encode(errors="replace"))
    if ending.stacks:
        faulthandler.dump_traceback(2, all_threads=True)

    def tidy() -> None:
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()

    # In a thread, since the main thread may hold the lock of a stream that nobody reads.
    tidying = threading.Thread(target=tidy, daemon=True)
    tidying.start()
    tidying.join(timeout=1)
    os._exit(ending.status)
