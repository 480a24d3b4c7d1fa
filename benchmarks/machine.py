"""What a measurement was taken on."""

import pathlib
import platform


def processor():
    """The accelerator's name, or the CPU's from /proc/cpuinfo."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
