"""``hasten doctor``: what this machine has, what Hasten found of it, and what would make it faster."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from hasten import __version__
from hasten.cli.options import Verb

if TYPE_CHECKING:
    from pathlib import Path

    from hasten.model.catalogue import Entry

GB = 1e9
MEGABYTES = 256  # that are read to time memory, where so much is free
WIDE_SETS = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(slots=True)
class Report:
    """Findings by section, as shown and as --json gives them; ``problems`` stop Hasten from running, ``advice`` does not."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, default=False, help="Print the findings as one JSON object.")
def doctor(as_json: bool) -> int:
    """Look at processor, memory, kernels, disk and models, and say what would make Hasten faster here.

    Takes a few seconds: it measures how fast memory is read. Exit status 1 when Hasten cannot run as it stands.
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False, indent=2))
    else:
        _show(report)
    return 1 if report.problems else 0


def examine() -> Report:
    """Gather everything; never raises for what it finds."""
    report = Report()
    report.sections["software"] = {"hasten": __version__, "python": platform.python_version(), "platform": platform.platform()}
    _processor(report)
    _torch(report)
    _kernels(report)
    _memory(report)
    _disk(report)
    _models(report)
    return report


def _processor(report: Report) -> None:
    from hasten.cli import machine

    sets = machine.instruction_sets()
    report.sections["processor"] = {
        "name": machine.processor_name(),
        "instruction_sets": sets,
        "physical_cores": machine.physical_cores(),
        "usable_threads": machine.usable_threads(),
    }
    if sets and platform.machine() in ("x86_64", "AMD64"):
        if "avx2" not in sets:
            report.advice.append("The processor has no AVX2, so slow generic code runs; x86 processors since about 2015 have it.")
        elif not any(name in sets for name in WIDE_SETS):
            report.advice.append(
                "The processor has neither VNNI nor AMX; on one that has them, checking guesses costs almost nothing."
            )


def _torch(report: Report) -> None:
    try:
        import torch
    except (ImportError, OSError) as problem:
        report.problems.append(f"PyTorch cannot be imported ({problem}); install the package again.")
        return
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    report.sections["torch"] = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_devices": cuda,
    }
    cores = report.sections["processor"]["physical_cores"] or report.sections["processor"]["usable_threads"]
    usable = min(cores, report.sections["processor"]["usable_threads"])
    used = torch.get_num_threads()
    if used < usable:
        report.advice.append(
            f"PyTorch uses {used} of {usable} cores; give --threads {usable}, or unset OMP_NUM_THREADS if it is set."
        )


def _kernels(report: Report) -> None:
    from hasten.native import loader

    status = loader.status()
    report.sections["native_kernels"] = status
    if not status["available"]:
        report.advice.append(f"The C++ kernels are not in use ({status['reason']}); they make every model faster.")


def _memory(report: Report) -> None:
    from hasten.cli import machine

    total, available = machine.memory_bytes()
    found: dict[str, Any] = {"total_bytes": total, "available_bytes": available}
    if "torch" in report.sections:
        from hasten.bench.machine import read_bandwidth

        room = MEGABYTES if available is None else min(MEGABYTES, available // 4 >> 20)
        found["read_bytes_per_second"] = round(read_bandwidth(max(1, room)))
    report.sections["memory"] = found
    if available is not None and available < 1 * GB:
        report.advice.append(f"Only {available / GB:.1f} GB of memory is free; close other programs or choose a smaller model.")


def _disk(report: Report) -> None:
    from hasten.cli import machine
    from hasten.model import storage

    home = storage.home()
    free = machine.disk_free_bytes(home)
    refused = [(folder, why) for folder in (home, *storage.directories()) if (why := machine.why_not_writable(folder))]
    report.sections["disk"] = {"models_folder": str(home), "writable": not refused, "free_bytes": free}
    if refused:
        _unwritable(report, *refused[0])
    elif free < 2 * GB:
        report.advice.append(f"Only {free / GB:.1f} GB is free on the disk of {home}; 'hasten rm' removes models.")


def _unwritable(report: Report, folder: Path, why: str) -> None:
    """What is there runs all the same; where there is nothing, nothing can be fetched."""
    from hasten.model.catalogue import CATALOGUE, on_disk

    lost = "no model can be fetched there, and nothing that is converted or measured is kept"
    fix = "check its permissions, or set HASTEN_HOME to a folder that can be written"
    sentences = report.advice if any(map(on_disk, CATALOGUE.values())) else report.problems
    sentences.append(f"{folder} cannot be written ({why}): {lost}; {fix}.")


def _models(report: Report) -> None:
    """Catalogue models here, with the precision that ``auto`` gives them and, on a CPU, how often a second their weights can be
    read: about the plain tokens a second."""
    from hasten.model.catalogue import CATALOGUE, DEFAULT, on_disk

    present = [entry for entry in CATALOGUE.values() if on_disk(entry)]
    rate = report.sections["memory"].get("read_bytes_per_second")
    report.sections["models"] = {entry.name: {"bytes": entry.bytes, **(_reads(entry, rate) if rate else {})} for entry in present}
    if not present:
        report.advice.append(f"No model is here yet; 'hasten pull {DEFAULT}' fetches the default one.")
    for entry in present:
        if entry.draft is not None and ("torch" not in report.sections or _lacks_speculator(entry)):
            _faster(entry, CATALOGUE[entry.draft], report)


def _faster(entry: Entry, draft: Entry, report: Report) -> None:
    """What would make a model faster that has no speculator. Steps of those that the catalogue has no draft model for are too short
    for one (docs/drafters/speculator.md)."""
    from hasten.model.catalogue import on_disk

    if not on_disk(draft):
        report.advice.append(f"{entry.name} is faster with its draft model; 'hasten pull {draft.name}' fetches it.")
    elif "torch" in report.sections and _drafts_in_four_bits(draft):
        report.advice.append(
            f"{entry.name} is faster with its draft model in three bits; 'hasten draft quantize -m {entry.name}' makes them."
        )
    if "torch" in report.sections:
        report.advice.append(
            f"{entry.name} is faster with a speculator of its own; 'hasten draft train -m {entry.name}' trains one."
        )


def _lacks_speculator(entry: Entry) -> bool:
    """Whether one could be trained, and was not; not for a damaged file."""
    from hasten.core.errors import HastenError
    from hasten.model.catalogue import resolve
    from hasten.model.loaders import open_source
    from hasten.model.storage import speculator_path

    try:
        return not speculator_path(open_source(resolve(entry.name).path).fingerprint).exists()
    except HastenError:
        return False


def _drafts_in_four_bits(entry: Entry) -> bool:
    """Whether three bits could be made of this draft model, and were not; not for a damaged file."""
    from hasten.core.errors import HastenError
    from hasten.engine.loading import choose_device
    from hasten.model.catalogue import resolve
    from hasten.model.kept_weights import draft_precision
    from hasten.model.loaders import open_source

    try:
        return draft_precision("auto", choose_device("auto"), open_source(resolve(entry.name).path)) == "q4_0"
    except HastenError:
        return False


def _reads(entry: Entry, rate: float) -> dict[str, Any]:
    """The precision that ``auto`` gives a model here, and how often a second its weights can be read at ``rate``, or the device
    where that is none whose memory was timed; {} for a damaged file."""
    from hasten.core.errors import HastenError
    from hasten.engine.loading import choose_device
    from hasten.model.catalogue import resolve
    from hasten.model.linear_file import choose_precision, file_runs_best
    from hasten.model.loaders import open_source

    device = choose_device("auto")
    try:
        precision = choose_precision("auto", device, file_runs_best(open_source(resolve(entry.name).path)))
    except HastenError:
        return {}
    if device.type != "cpu":
        return {"precision": precision.name, "device": device.type}
    size = entry.bytes if precision.name == "file" else entry.parameters * precision.weights.itemsize
    return {"precision": precision.name, "reads_per_second": round(rate / size, 1)}


def _show(report: Report) -> None:
    from rich.table import Table

    from hasten.cli.screen import answers, print_table

    out = answers()
    for section, findings in report.sections.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=18, no_wrap=True)
        table.add_column()
        for name, value in findings.items():
            label, text = _said(section, name, value)
            table.add_row(f"  {label}", text)
        if not findings:
            table.add_row("  none", "")
        out.print(section.replace("_", " ").capitalize(), style="bold")
        print_table(out, table)
    for title, style, sentences in (("Cannot run", "bold red", report.problems), ("To be faster", "bold green", report.advice)):
        if sentences:
            out.print(title, style=style)
            for sentence in sentences:
                out.print(f"  {sentence}")
    if not report.problems and not report.advice:
        out.print("Nothing to improve that the doctor knows of.", style="bold green")


def _said(section: str, name: str, value: Any) -> tuple[str, str]:
    """A finding for people: units, and words instead of empty values."""
    if section == "models":
        rate = value.get("reads_per_second")
        bound = f" · at most about {rate:.0f} plain tok/s in {value['precision']} at this read speed" if rate else ""
        bound = f" · runs in {value['precision']} on {value['device']}" if "device" in value else bound
        return name, f"{value['bytes'] / GB:.2f} GB{bound}"
    if name.endswith("_bytes_per_second"):
        return "read speed", f"{value / GB:.1f} GB/s, measured now"
    if name.endswith("_bytes"):
        return name.removesuffix("_bytes"), "not known" if value is None else f"{value / GB:.1f} GB"
    if isinstance(value, bool):
        return name, "yes" if value else "no"
    if isinstance(value, dict):
        return name.replace("_", " "), ", ".join(f"{part} {what}" for part, what in value.items())
    if isinstance(value, list):
        return name.replace("_", " "), ", ".join(map(str, value)) or "none"
    return name.replace("_", " "), "not known" if value is None else str(value)
