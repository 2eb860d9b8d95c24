"""Workloads on a GKE cluster by xpk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flashjax.launch.common import Target, at_least, one_word, shell_array
from flashjax.launch.kubernetes import unexpanded


@dataclass(frozen=True, kw_only=True)
class Xpk(Target):
    """A workload on a GKE cluster that xpk manages (xpk workload create).

    JAX finds its peers by itself there. A failed or preempted workload is restarted as a whole and resumes.
    """

    cluster: str
    """Cluster."""
    device_type: str
    """Device type of a slice, such as v5litepod-16 or v6e-256."""
    zone: str | None = None
    """Zone of the cluster; default: gcloud's own."""
    project: str | None = None
    """Project; default: gcloud's own."""
    slices: int = 1
    """Slices (mesh axis replica)."""
    image: str | None = None
    """Image that holds everything. Without it xpk adds the current directory to base_image."""
    base_image: str | None = None
    """Image to which xpk adds the current directory; default: xpk's own."""
    max_restarts: int = 10
    """How often the workload is restarted."""
    grace_s: int = 300
    """Seconds between SIGTERM and SIGKILL, in which the run saves."""
    priority: str = "medium"
    """Priority in the queue: very-low, low, medium, high, very-high."""

    target: ClassVar[str] = "xpk"
    client: ClassVar[str | None] = "xpk"

    def check(self) -> None:
        super().check()
        at_least(1, slices=self.slices, grace_s=self.grace_s)
        at_least(0, max_restarts=self.max_restarts)
        for name in ("cluster", "device_type"):
            one_word(name, getattr(self, name))
        if self.image and self.base_image:
            raise ValueError("image holds everything, base_image gets the current directory: give one of them")

    def script(self, command: Sequence[str]) -> str:
        words = ["env", *self.env, *command] if self.env else list(command)
        options = {
            "cluster": self.cluster,
            "workload": self.name,
            "device-type": self.device_type,
            "num-slices": self.slices,
            "zone": self.zone,
            "project": self.project,
            "docker-image": self.image,
            "base-docker-image": self.base_image,
            "script-dir": None if self.image else ".",
            "priority": self.priority,
            "max-restarts": self.max_restarts,
            "termination-grace-period-seconds": self.grace_s,
        }
        arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
        arguments += ["--restart-on-user-code-failure", f"--command={pasted(words)}"]
        return f"""#!/bin/bash
set -euo pipefail

# xpk pastes the command into one line of a manifest, where Kubernetes halves each $$ before a shell reads it:
# newlines are therefore spelled out, and each $ is doubled.
{shell_array("arguments", arguments)}
xpk workload create "${{arguments[@]}}"
"""


def pasted(words: Sequence[str]) -> str:
    """The words as one line of bash that survives being pasted into a manifest."""
    return unexpanded(" ".join(_quoted(word) for word in words))


def _quoted(word: str) -> str:
    """One bash word without a raw control character."""
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", word):
        # $'...' spells them out.
        escaped = word.replace("\\", "\\\\").replace("'", "\\'")
        return "$'" + re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", _spelled, escaped) + "'"
    if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _spelled(match: re.Match[str]) -> str:
    # By bytes: \\u would depend on the container's locale.
    return "".join(f"\\{byte:03o}" for byte in match[0].encode())
