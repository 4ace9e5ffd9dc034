"""What a pretraining cost: device hours, and an estimate of energy with what it assumes."""

from collections.abc import Mapping
from typing import Any

# Rated power of one device in watts, from the makers' data sheets; the first name that fits.
_WATTS = {
    "B200": 1000,
    "H200": 700,
    "H100 PCIe": 350,
    "H100": 700,
    "A100-PCIE": 300,
    "A100": 400,
    "V100": 300,
    "L40": 300,
    "L4": 72,
    "A40": 300,
    "A10": 150,
    "T4": 70,
    "RTX 4090": 450,
    "RTX 3090": 350,
}
_CPU, _CPU_WATTS = "CPU", 100
_OVERHEAD = 1.3


def compute_in_words(provenance: Mapping[str, Any]) -> str:
    """Hours and devices."""
    if "hours" not in provenance:
        return "unknown"
    hours, devices = provenance["hours"], provenance["world_size"]
    return f"{hours:.2f} h x {devices} {provenance['device']} = {hours * devices:.2f} device hours"


def energy_in_words(provenance: Mapping[str, Any]) -> str:
    """An estimate of energy, and what it assumes; nothing was measured."""
    watts = _rated_watts(str(provenance.get("device", "")))
    if "hours" not in provenance or watts is None:
        return "unknown"
    kwh = provenance["hours"] * provenance["world_size"] * watts / 1000 * _OVERHEAD
    return (
        f"about {kwh:.2g} kWh, not measured: each device at {watts} W, as if always at its rated "
        f"power, times {_OVERHEAD:g} for host and cooling"
    )


def _rated_watts(device: str) -> int | None:
    if device == _CPU:
        return _CPU_WATTS
    return next((watts for name, watts in _WATTS.items() if name.lower() in device.lower()), None)
