"""The tables of `steermoe plan --profile`."""

from rich.table import Table

from steermoe.analysis.plan import GB, Gpu
from steermoe.analysis.profile_plan import ProfilePlan
from steermoe.serving.terminal import plain_console


def show(profile: str, found: ProfilePlan, gpu: Gpu, gpus: int, mode: str, assumptions: list[str]) -> None:
    """Print what every arm takes, the disk, and what the figures rest on."""
    console = plain_console()
    title = f"profile {profile}: training on {gpus} device(s) of {gpu.memory / GB:.0f} GB, mode {mode}"
    table = Table(title=title, title_justify="left")
    for column in ("arm", "models", "audio hours x epochs", "device hours", "GB a device", "fits"):
        table.add_column(column, justify="left" if column in ("arm", "models") else "right")
    for arm in found.arms:
        longest, shortest = arm.device_hours
        table.add_row(
            arm.name,
            " + ".join(arm.models),
            f"{arm.corpus.hours:,.0f} x {arm.corpus.epochs:.1f}",
            f"{shortest:,.1f} to {longest:,.1f}",
            f"{arm.memory / GB:.1f}",
            "no" if arm.refusals else "yes",
        )
    longest, shortest = found.device_hours
    table.add_row("all", "", "", f"{shortest:,.1f} to {longest:,.1f}", "", "")
    console.print(table)
    disk = Table(title="disk in GB", title_justify="left")
    disk.add_column("")
    disk.add_column("", justify="right")
    for name, size in {**found.disk, "all": sum(found.disk.values())}.items():
        disk.add_row(name, f"{size / GB:.1f}")
    console.print(disk)
    console.print("Assumed:", style="bold")
    for line in assumptions:
        console.print(f"- {line}")
