"""The tables of docs/validation/speed.md, from the JSON beside it.

Prose is written by hand; whatever stands between ``<!-- NAME: from speed.json -->`` and ``<!-- end -->`` is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.response import ANY, SYMMETRIC

PAGE = Path("docs/validation/speed.md")
DATA = Path("docs/validation/speed.json")
BLOCK = re.compile(r"(<!-- (?P<name>[\w-]+): from speed\.json -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

GROWTH = "![Time and memory of the pipeline against the number of atoms](../images/speed_growth.png)"

TARGETS = {
    ("response", ANY): "≥ 3.5 each",
    ("response", SYMMETRIC): "≥ 5 on average",
    ("ionic", ANY): "≥ 2.5 each",
    ("ionic", SYMMETRIC): "≥ 12 (p5, q9), ≥ 16 (m36, l80)",
    ("training", ANY): "≥ 3.2 each",
    ("training", SYMMETRIC): "≥ 6 each",
    ("dynamics", None): "≥ 2.5 each",
}
"""What was asked for before it was measured."""

NAMES = {
    "response": "E, F, stress, P, Z*, α",
    "ionic": "whole pipeline to ε_ion",
    "training": "training step, all labels",
    "dynamics": "E, F, stress, P of a step of dynamics, against mace-torch's E, F, stress",
    "hessian": "Γ-point Hessian",
}


def render(page: str, sections: dict[str, Any]) -> str:
    """Return the page with all blocks filled from the sections.

    Raises:
        KeyError: If a block asks for a table that does not exist.
    """
    return BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m['name']](sections)}\n\n{m[4]}", page)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """Return a table; columns from ``numbers_from`` on are aligned to the right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def ratio(timing: dict[str, Any]) -> str:
    """Return the median ratio in bold, with least and greatest."""
    digits = 1 if timing["ratio"] < 100 else 0
    return f"**{timing['ratio']:.{digits}f}** ({timing['ratio_low']:.{digits}f} to {timing['ratio_high']:.{digits}f})"


def milliseconds(value: float) -> str:
    """Return a time in ms with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def conditions(sections: dict[str, Any]) -> str:
    """Return machine and versions, once for all sections if they agree."""
    found: dict[str, list[str]] = {}
    for name, section in sections.items():
        e, s = section["environment"], section["settings"]
        text = (
            f"{e['processor']}, {e['cores']} cores, {e['threads']} thread, "
            + (f"{e['gpu']}, " if e["gpu"] else "")
            + f"Python {e['python']}, torch {e['torch']}, mace-torch {e['mace-torch']}, e3nn {e['e3nn']}, "
            + (f"{s['channels']} channels, {s['dtype']}, " if "channels" in s else "")
            + f"{e['date']}"
        )
        found.setdefault(text, []).append(name)
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in found.items())


def targets(sections: dict[str, Any]) -> str:
    """Return what was asked for and what was found."""
    rows = []
    for (task, variant), wanted in TARGETS.items():
        if task not in sections:
            continue
        chosen = [t for t in sections[task]["timings"] if variant in (None, t["variant"])]
        if variant is None:  # against two ways of building the graph: the smaller ratio counts
            chosen = [min((t for t in chosen if t["tag"] == tag), key=lambda t: t["ratio"]) for tag in _tags(chosen)]
        values = ", ".join(f"{t['ratio']:.1f} ({t['tag']})" for t in chosen)
        mean = sum(t["ratio"] for t in chosen) / len(chosen)
        rows.append((NAMES[task], variant or ANY, wanted, values, f"{mean:.1f}"))
    return markdown(("task", "", "asked for", "times faster", "mean"), rows, numbers_from=4)


def two_variants(task: str) -> Callable[[dict[str, Any]], str]:
    """Return the table of a task that was timed with and without symmetry."""

    def fill(sections: dict[str, Any]) -> str:
        if task not in sections:
            return "Not measured yet."
        timings = sections[task]["timings"]
        extrapolated = any(t["baseline_rows"] for t in timings)
        rows = []
        for tag in _tags(timings):
            plain, symmetric = (
                next(t for t in timings if (t["tag"], t["variant"]) == (tag, variant)) for variant in (ANY, SYMMETRIC)
            )
            same = [plain["baseline_ms"]]
            if task == "training":  # rattled crystals and those at their symmetry are different ones
                same.append(symmetric["baseline_ms"])
            row = [f"{tag}: {plain['formula']}", str(plain["n_atoms"]), " / ".join(map(milliseconds, same))]
            if extrapolated:
                computed = plain["baseline_rows"]
                row.append(f"{computed[0]} of {computed[1]}" if computed else f"all {3 * plain['n_atoms']}")
            row += [milliseconds(plain["product_ms"]), ratio(plain)]
            row += [milliseconds(symmetric["product_ms"]), ratio(symmetric)]
            row.append(f"{max(plain['difference'], symmetric['difference']):.0e}")
            rows.append(row)
        header = ["crystal", "atoms", "baseline (ms)"]
        header += ["rows of H computed"] if extrapolated else []
        header += ["any structure (ms)", "times faster", "with symmetry (ms)", "times faster", "results differ by"]
        return markdown(header, rows)

    return fill


def one_variant(task: str, first: str, second: str) -> Callable[[dict[str, Any]], str]:
    """Return the table of a task with one product per line."""

    def fill(sections: dict[str, Any]) -> str:
        if task not in sections:
            return "Not measured yet."
        rows = [
            (
                f"{t['tag']}: {t['formula']}",
                t["variant"],
                str(t["n_atoms"]),
                milliseconds(t["baseline_ms"]),
                milliseconds(t["product_ms"]),
                ratio(t),
                f"{t['difference']:.0e}",
            )
            for t in sections[task]["timings"]
        ]
        header = ("crystal", "against", "atoms", f"{first} (ms)", f"{second} (ms)", "times faster", "results differ by")
        return markdown(header, rows, numbers_from=2)

    return fill


def precision(sections: dict[str, Any]) -> str:
    """Return the errors of single precision."""
    if "precision" not in sections:
        return "Not measured yet."
    rows = []
    models = sections["precision"]["models"]
    for name in models[0]["errors"]:
        row = [name.replace("_", " ")]
        for item in models:
            error = item["errors"][name]
            per_atom = " per atom" if name == "energy" else ""
            row.append(f"{error['relative']:.0e} / {error['relative_max']:.0e}")
            row.append(f"{error['absolute']:.0e} {error['unit']}{per_atom}")
        rows.append(row)
    header = ["observable"]
    for item in models:
        header += [
            f"{item['model']}, on {len(item['crystals'])} crystals: median / largest relative",
            "largest absolute",
        ]
    return markdown(header, rows)


def sample(sections: dict[str, Any]) -> str:
    """Return what the sample took in all."""
    if "sample" not in sections:
        return "Not measured yet."
    s = sections["sample"]["summary"]
    rows = [
        ("crystals (failed)", f"{s['crystals']} ({s['failed']})"),
        ("atoms in the primitive cell", f"{s['smallest']} to {s['largest']}"),
        ("total time: processor, wall", f"{s['cpu_seconds'] / 60:.1f} min, {s['seconds'] / 60:.1f} min"),
        ("processor time of a crystal: median, slowest", f"{s['median_seconds']:.2g} s, {s['slowest_seconds']:.0f} s"),
        ("products for the Hessians, of rows", f"{s['displacements']} of {s['rows']}"),
        ("peak memory of the process", f"{s['peak_bytes'] / 1e9:.1f} GB"),
    ]
    if "exponent" in s:
        rows.append(("exponent of time ∝ atomsᵖ, from 8 atoms on", f"{s['exponent']:.2f}"))
    if "baseline" in s:
        b = s["baseline"]
        rows.append(
            (
                f"the baseline on {b['crystals']} of them, both timed in another run, "
                "extrapolated from 2 rows of H each",
                f"{b['seconds'] / 60:.1f} min against {b['product_seconds'] / 60:.1f} min: "
                f"{b['ratio']:.0f} times (median of the crystals {b['median_ratio']:.0f})",
            )
        )
    return f"{markdown(('', ''), rows)}\n\n{GROWTH}"


def gpu(sections: dict[str, Any]) -> str:
    """Return the rates on a GPU."""
    if "gpu" not in sections:
        return "No GPU has been at hand yet; `make bench-gpu` measures there."
    g = sections["gpu"]["result"]
    theirs = g["baseline"]
    rows = []
    for name, title in (("response", NAMES["response"]), ("pipeline", "response, Hessian and ε_ion")):
        rows.append(
            (
                title,
                f"{g['rates'][name]:.3g}",
                f"{theirs['rates'][name]:.3g}",
                f"{g['rates'][name] / theirs['rates'][name]:.0f}",
            )
        )
    table = markdown(("crystals per second", "in batches", "one by one, baseline", "times faster"), rows)
    busy = g["profile"]["pipeline"]
    operations = ", ".join(f"{o['name']} ({o['seconds'] / busy['busy_seconds']:.0%})" for o in busy["operations"][:6])
    return (
        f"{table}\n\n{g['device']}, {g['crystals']} crystals. In the pipeline the device is busy for "
        f"{busy['busy_seconds'] / busy['seconds']:.0%} of the time, with {operations}."
    )


def datasets(sections: dict[str, Any]) -> str:
    """Return what a build of ten thousand crystals took, by stage."""
    if "datasets" not in sections:
        return "Not measured yet."
    result = sections["datasets"]["result"]
    frames = result["frames"]
    rows = [
        (stage, f"{item['processor_seconds']:.1f}", f"{item['seconds']:.1f}")
        for stage, item in (*result["stages"].items(), ("all", result))
    ]
    return (
        f"{markdown(('stage', 'processor time (s)', 'wall time (s)'), rows)}\n\n"
        f"{frames['read']:,} crystals of {frames['smallest']} to {frames['largest']} atoms "
        f"({frames['mean']:.1f} on average): "
        f"{frames['kept']:,} kept ({frames['materials']:,} formulas), {frames['copies']:,} copies of others, "
        f"{frames['rejected']:,} rejected. Peak memory {result['peak_megabytes']:.0f} MB."
    )


def _tags(timings: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(t["tag"] for t in timings))


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "conditions": conditions,
    "targets": targets,
    "response": two_variants("response"),
    "ionic": two_variants("ionic"),
    "hessian": two_variants("hessian"),
    "training": two_variants("training"),
    "dynamics": one_variant("dynamics", "mace-torch", "fieldflows"),
    "scripted": one_variant("scripted", "baseline", "with TorchScript"),
    "precision": precision,
    "sample": sample,
    "gpu": gpu,
    "datasets": datasets,
}
"""Tables by the name of their block."""
