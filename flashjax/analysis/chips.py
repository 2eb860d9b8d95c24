"""What one JAX device of each kind can do, by the `device_kind` that JAX reports.

A device is what `jax.devices()` counts, which is not always a chip: TPU v2, v3 and 7x chips show as two devices, one
for each TensorCore, while v4 and v5p show their two as one. The vendors publish per chip; the table halves where due.

Sources, read in 2026:
- TPU: Google Cloud's pages "TPU v3" to "TPU v6e" and "TPU7x (Ironwood)" (peak bf16 compute, HBM capacity and bandwidth
  per chip), and for the strings of `device_kind` and TensorCores per device `jax/_src/pallas/mosaic/tpu_info.py`.
  Links: "bidirectional inter-chip interconnect bandwidth (per chip)" there, of which a chip sends half. int8 is in
  the same tables and in `tpu_info.py`.
  Clocks are not on these pages. They are peak compute over the FLOPs of the matrix units in a cycle (2 x 128 x 128 a
  unit, 256 x 256 from v6e on): 4 units and 1.5 GHz on v5e, and so on. The compiler's own estimate of an 8192-square
  product stays within 70 to 90 % of the peak at these clocks.
- NVIDIA: the data sheets of each product. Theirs state tensor-core rates with 2:4 sparsity; the table has dense ones,
  half of that. Memory is as marketed, in units of 10^9 bytes; the driver reports somewhat other numbers. Links:
  NVLink's total of both directions there, of which a device sends half.
"""

from dataclasses import dataclass, fields, replace

GiB = 2**30
GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Chip:
    """One device's peak rates."""

    bf16_flops: float
    """Dense bfloat16 FLOP/s, a multiply and an add being two; float16 where the chip has no bfloat16 units."""
    hbm_bytes: int
    """Memory of the device."""
    hbm_bandwidth: float
    """Bytes/s to and from that memory."""
    int8_ops: float | None = None
    """Dense int8 operations/s."""
    clock: float | None = None
    """Cycles/s in which the compiler's estimates are."""
    link_bandwidth: float | None = None
    """Bytes/s that the device can send to others of its slice or board, over all links together."""

    def part(self, share: float) -> "Chip":
        """A device that is a part of this one: its rates and memory, at the same clock."""
        scaled = {
            f.name: value * share
            for f in fields(self)
            if f.name != "clock" and (value := getattr(self, f.name)) is not None
        }
        return replace(self, **scaled | {"hbm_bytes": int(self.hbm_bytes * share)})


_A100_40 = Chip(312 * TERA, 40 * GB, 1555 * GB, 624 * TERA)
_V100_16 = Chip(125 * TERA, 16 * GB, 900 * GB)
_V100_32 = Chip(125 * TERA, 32 * GB, 900 * GB)
_V5E = Chip(197 * TERA, 16 * GB, 819 * GB, 393 * TERA, 1.5e9, 200 * GB)
_V5P = Chip(459 * TERA, 95 * GB, 2765 * GB, 918 * TERA, 1.75e9, 600 * GB)
_V6E = Chip(918 * TERA, 32 * GB, 1638 * GB, 1836 * TERA, 1.75e9, 400 * GB)

CHIPS: dict[str, Chip] = {
    # Half a chip each: v2 after tpu_info.py, v3 of 123 TFLOP/s, 32 GiB, 900 GB/s, 7x of 2307, 192, 7380.
    "TPU v2": Chip(46 * TERA / 2, 8 * GB, 358 * GB),
    "TPU v3": Chip(123 * TERA / 2, 16 * GiB, 450 * GB, None, 0.94e9),
    "TPU v4": Chip(275 * TERA, 32 * GiB, 1200 * GB, None, 1.05e9, 300 * GB),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip(2307 * TERA / 2, 96 * GiB, 3690 * GB, None, 2.2e9, 300 * GB),
    # float16 on Volta and Turing, which have no bfloat16.
    "Tesla V100-SXM2-16GB": _V100_16,
    "Tesla V100-SXM2-32GB": _V100_32,
    "Tesla V100-PCIE-16GB": Chip(112 * TERA, 16 * GB, 900 * GB),
    "Tesla V100-PCIE-32GB": Chip(112 * TERA, 32 * GB, 900 * GB),
    "Tesla T4": Chip(65 * TERA, 16 * GB, 300 * GB),
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100-PCIE-40GB": _A100_40,
    "NVIDIA A100-SXM4-80GB": Chip(312 * TERA, 80 * GB, 2039 * GB, 624 * TERA, None, 300 * GB),
    "NVIDIA A100 80GB PCIe": Chip(312 * TERA, 80 * GB, 1935 * GB, 624 * TERA),
    "NVIDIA A10": Chip(125 * TERA, 24 * GB, 600 * GB),
    "NVIDIA L4": Chip(121 * TERA, 24 * GB, 300 * GB),
    "NVIDIA L40S": Chip(362 * TERA, 48 * GB, 864 * GB),
    "NVIDIA H100 80GB HBM3": Chip(989.4 * TERA, 80 * GB, 3350 * GB, 1979 * TERA, None, 450 * GB),
    "NVIDIA H100 PCIe": Chip(756 * TERA, 80 * GB, 2000 * GB),
    "NVIDIA H100 NVL": Chip(835.5 * TERA, 94 * GB, 3900 * GB),
    "NVIDIA H200": Chip(989.4 * TERA, 141 * GB, 4800 * GB, 1979 * TERA, None, 450 * GB),
    "NVIDIA H200 NVL": Chip(835.5 * TERA, 141 * GB, 4800 * GB),
    # The one on the HGX board (1000 W) and the one beside a Grace CPU (1200 W).
    "NVIDIA B200": Chip(2250 * TERA, 180 * GB, 8000 * GB, 4500 * TERA, None, 900 * GB),
    "NVIDIA GB200": Chip(2500 * TERA, 186 * GB, 8000 * GB),
}


def chip(device_kind: str) -> Chip | None:
    """The figures of one device, or None for a kind that the table has not: no guess is made from likeness."""
    return CHIPS.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device, or None for an unknown kind, a CPU among them."""
    known = chip(device_kind)
    return None if known is None else known.bf16_flops
