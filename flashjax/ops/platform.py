"""The platform that a function is traced for."""

import jax


def traced_for() -> str:
    """cpu, gpu or tpu: of the devices of the mesh that is traced under, which for a plan are not there; without a mesh
    the platform of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform
