"""A JobSet: N indexed pods that find each other by name and restart together."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flashjax.launch.common import Target, at_least, one_word

PORT = 8476
_JOB = "run"


@dataclass(frozen=True, kw_only=True)
class Kubernetes(Target):
    """A JobSet on any Kubernetes cluster (kubectl apply), restarted as a whole.

    The cluster needs the JobSet controller. CPU and GPU pods get the address of pod 0 from this manifest; TPU pods get
    theirs from GKE. A pod that dies or fails ends the others, and the set restarts and resumes.
    """

    image: str
    """Image that holds the code and what it needs."""
    processes: int = 2
    """Pods, one process in each. On TPU: the hosts of one slice."""
    gpus: int = 0
    """GPUs of each pod."""
    tpu: str | None = None
    """TPU accelerator of the nodes, such as tpu-v5-lite-podslice."""
    topology: str | None = None
    """TPU topology of the slice, such as 4x4."""
    chips: int = 4
    """TPU chips of each pod."""
    cpu: str | None = None
    """CPU of each pod, such as 8."""
    memory: str | None = None
    """Memory of each pod, such as 32Gi."""
    namespace: str | None = None
    """Namespace; default: kubectl's own."""
    service_account: str | None = None
    """Service account of the pods."""
    mounts: tuple[str, ...] = ()
    """claim:/path ... persistent volume claims; the workdir must lie on one that all pods share."""
    max_restarts: int = 10
    """How often the set is restarted."""
    grace_s: int = 300
    """Seconds between SIGTERM and SIGKILL, in which the run saves."""

    target: ClassVar[str] = "kubernetes"
    suffix: ClassVar[str] = "yaml"
    client: ClassVar[str | None] = "kubectl"

    def check(self) -> None:
        super().check()
        at_least(1, processes=self.processes, chips=self.chips, grace_s=self.grace_s)
        at_least(0, gpus=self.gpus, max_restarts=self.max_restarts)
        one_word("image", self.image)
        if bool(self.tpu) != bool(self.topology):
            raise ValueError(f"tpu {self.tpu!r} with topology {self.topology!r}: GKE needs both or neither")
        if self.tpu and self.gpus:
            raise ValueError(f"tpu {self.tpu!r} with gpus {self.gpus}: a pod has one kind of accelerator")
        for mount in self.mounts:
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?:/\S*", mount):
                raise ValueError(f"mount {mount!r} is not claim:/path")

    def script(self, command: Sequence[str]) -> str:
        return "# Needs the JobSet controller (jobset.sigs.k8s.io) in the cluster.\n" + yaml(self._jobset(command))

    def run(self, path: Path, command: Sequence[str]) -> int:
        return subprocess.call(["kubectl", "apply", f"--filename={path}"])

    def _jobset(self, command: Sequence[str]) -> dict[str, Any]:
        job = {
            "completionMode": "Indexed",
            "completions": self.processes,
            "parallelism": self.processes,
            # One lost pod is a lost step for all: the set starts again, not the pod.
            "backoffLimit": 0,
            "template": {"spec": self._pod(command)},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": self.name} | ({"namespace": self.namespace} if self.namespace else {}),
            "spec": {
                "failurePolicy": {"maxRestarts": self.max_restarts},
                # The pods look for pod 0 before it is ready.
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": job}}],
            },
        }

    def _pod(self, command: Sequence[str]) -> dict[str, Any]:
        pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": self.grace_s}
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        if self.tpu:
            pod["nodeSelector"] = {
                "cloud.google.com/gke-tpu-accelerator": self.tpu,
                "cloud.google.com/gke-tpu-topology": self.topology,
            }
        limits = {"cpu": self.cpu, "memory": self.memory}
        limits["nvidia.com/gpu"] = str(self.gpus) if self.gpus else None
        limits["google.com/tpu"] = str(self.chips) if self.tpu else None
        container: dict[str, Any] = {
            "name": _JOB,
            "image": self.image,
            "command": [unexpanded(word) for word in command],
            "env": self._environment(),
        }
        if any(limits.values()):
            container["resources"] = {"limits": {name: value for name, value in limits.items() if value}}
        mounts = [mount.split(":", 1) for mount in self.mounts]
        if mounts:
            container["volumeMounts"] = [{"name": claim, "mountPath": path} for claim, path in mounts]
            pod["volumes"] = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim, _ in mounts]
        return pod | {"containers": [container]}

    def _environment(self) -> list[dict[str, Any]]:
        pairs = [pair.split("=", 1) for pair in self.env]
        given: list[dict[str, Any]] = [{"name": name, "value": unexpanded(value)} for name, value in pairs]
        given.append({"name": "PYTHONUNBUFFERED", "value": "1"})
        if self.tpu:
            return given
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        return [
            {"name": "FLASHJAX_COORDINATOR", "value": f"{self.name}-{_JOB}-0-0.{self.name}:{PORT}"},
            {"name": "FLASHJAX_NUM_PROCESSES", "value": str(self.processes)},
            {"name": "FLASHJAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            *given,
        ]


def unexpanded(text: str) -> str:
    """``text`` with each $ doubled: Kubernetes reads $(NAME) and $$ in commands and values before any shell does."""
    return text.replace("$", "$$")


def yaml(value: Any, indent: str = "") -> str:
    """Block YAML of nested mappings and lists; every string is quoted."""
    if isinstance(value, dict):
        items = [(f"{indent}{key}:", inner) for key, inner in value.items()]
    else:
        items = [(f"{indent}-", inner) for inner in value]
    text = ""
    for lead, inner in items:
        if isinstance(inner, dict) and lead.endswith("-"):
            # The first key stands on the line of the dash.
            text += f"{lead} " + yaml(inner, indent + "  ").removeprefix(indent + "  ")
        elif isinstance(inner, dict | list):
            text += f"{lead}\n" + yaml(inner, indent + "  ")
        else:
            text += f"{lead} {_scalar(inner)}\n"
    return text


def _scalar(value: str | int | bool) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    # JSON's quoting is YAML's, but for characters that YAML takes for line breaks or refuses raw.
    quoted = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", quoted)
