"""Results of a GPU session as Markdown."""

from __future__ import annotations

from typing import Any

ENOUGH = 5
"""Rounds of the campaign that a ratio needs."""
SIDES = {
    "stock": "the requests on stock vLLM",
    "stock_ids": "on stock vLLM without texts",
    "armed": "as many trials whose faults never hit",
    "campaign": "the campaign",
}


def markdown(results: dict[str, Any]) -> str:
    """What was measured, one section per part; parts that failed say so."""
    machine = results["machine"]
    lines = [
        "# GPU session",
        "",
        f"`{results['command']}` on {', '.join(machine['gpus']) or 'no GPU'}: "
        + ", ".join(f"{name} {value}" for name, value in machine.items() if name != "gpus")
        + ".",
    ]
    for name, write in (
        ("cost", _cost),
        ("step", _cost),
        ("long", _cost),
        ("campaign", _campaign),
        ("speed", _campaign),
        ("guide", _guide),
        ("fleet", _fleet),
    ):
        if name in results:
            lines += ["", f"## {name}", "", *_failure(results[name]), *write(results[name])]
    for name in ("checks", "parallel"):
        if name in results:
            lines += ["", f"## {name}", "", *_variants(results[name])]
    if "floor" in results:
        lines += ["", "## floor of stock vLLM", "", *_floor(results["floor"])]
    return "\n".join(lines) + "\n"


def _fleet(part: dict[str, Any]) -> list[str]:
    lines = []
    for name, p in part.items():
        if name.startswith("engines"):
            lines.append(
                f"- {name}: {p['trials']} trials in {p['seconds']:.2f} s, {p['planned_is_landed']} landed as planned "
                f"({p['flips']} flips), controls {p['controls_identical']}"
            )
    names = ("flips_identical", "tokens_identical", "same_environment", "speedup")
    return lines + [f"- {name}: {part[name]}" for name in names if name in part]


def _floor(part: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in part.items():
        if "answers" not in found:
            lines += [f"- {name}:", *_failure(found)]
            continue
        same = ", ".join(f"{batch} {same} of {n}" for batch, (same, n) in found["answers"].items())
        margins = [difference["margin"] for difference in found["differences"]]
        worst = f"; widest margin of a token that changed: {max(margins):.3f} nats" if margins else ""
        lines.append(f"- {name}: answers as alone: {same}{worst}")
    return lines


def _failure(part: dict[str, Any]) -> list[str]:
    if part.get("process", {}).get("exit", 0) == 0 and "skipped" not in part:
        return []
    why = part.get("skipped") or part.get("failed") or part["process"]["output"]
    return ["**Not complete:**", "", "```", str(why)[-1500:], "```", ""]


def _cost(part: dict[str, Any]) -> list[str]:
    if "cases" not in part:
        return []
    names = ["case", "rounds", "stock s", "writes / stock", "reads", "medians: writes", "reads"]
    names += ["step: writes", "reads", "median step: writes", "reads"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, case in part["cases"].items():
        figures = [
            f"{case[kind][mode]:.4f}" if case[kind].get(mode, float("nan")) == case[kind].get(mode) else ""
            for kind in ("ratio", "median_ratio", "step_ratio", "median_step_ratio")
            for mode in ("writes", "reads")
        ]
        lines.append(f"| {name} | {case['rounds']} | {case['seconds']['stock']:.4f} | {' | '.join(figures)} |")
    for name, case in part["cases"].items():
        for mode, phases in case["phases_ms"].items():
            lines.append(f"- {name}, {mode}: " + ", ".join(f"{phase} {ms:.2f} ms" for phase, ms in phases.items()))
    return lines


def _campaign(part: dict[str, Any]) -> list[str]:
    lines = []
    if "speed" in part:
        speed = part["speed"]
        few = "" if speed["rounds"] >= ENOUGH else f", **fewer than {ENOUGH}**"
        lines.append(
            f"- {speed['rounds']:.0f} rounds{few}; seconds are minima, ratios those of minima and of medians in rounds"
        )
        for side, words in SIDES.items():
            ratios = [
                f"{speed[f'{side}_to_{base}']:.4f} and {speed[f'{side}_to_{base}_paired']:.4f} of {SIDES[base]}"
                for base in ("stock", "stock_ids")
                if side in ("armed", "campaign")
            ]
            lines.append(f"- {words}: {speed[side]:.3f} s" + "".join(f", {ratio}" for ratio in ratios))
        lines += _undisturbed(speed.get("undisturbed", {}))
    for name in ("writes", "reads", "isolation"):
        if name in part:
            p = part[name]
            lines.append(
                f"- {name}: {p['trials']} trials, {p['planned_is_landed']} landed as planned ({p['flips']} flips), "
                f"controls identical to golden {p['controls_identical'][0]} of {p['controls_identical'][1]}, "
                f"accuracy {p['accuracy_by_cell']}, non-finite {p['nonfinite_trials']}"
            )
    both = [name for name in ("shuffled_identical", "reads_shuffled_identical") if name in part]
    return lines + [f"- {name}: {part[name][0]} of {part[name][1]}" for name in both]


def _undisturbed(undisturbed: dict[str, dict[str, float | None]]) -> list[str]:
    """Speeds with the host's noise taken out."""
    lines = []
    for name, found in undisturbed.items():
        each = []
        for side, words in SIDES.items():
            if (seconds := found[side]) is None:
                each.append(f"{words}: none, its rounds differ in their steps")
                continue
            ratios = [
                f", {ratio:.4f} of {SIDES[base]}"
                for base in ("stock", "stock_ids")
                if side in ("armed", "campaign") and (ratio := found[f"{side}_to_{base}"])
            ]
            each.append(f"{words}: {seconds:.3f} s{''.join(ratios)}")
        lines.append(f"- all {name} as in their fastest rounds: " + "; ".join(each))
    return lines


def _guide(part: dict[str, Any]) -> list[str]:
    lines = []
    if "mean_load_seconds" in part:
        mean, loads = part["mean_load_seconds"], part["measured_loads"]
        lines.append(f"- an engine per experiment: {mean:.1f} s each, mean of {loads} loads")
    large = f"{part.get('cells')} cells, its side extrapolated"
    for name, what in (("7", "golden and 6 experiments"), ("320", large)):
        if f"ratio_{name}" in part:
            lines.append(
                f"- {what}: {part[f'kvspec_seconds_{name}']:.1f} s, ratio {part[f'ratio_{name}']:.2f} "
                f"(of minima {part[f'ratio_{name}_of_minima']:.2f})"
            )
    for name, what in (("7", "golden and 6 experiments"), ("320", large)):
        if f"ratio_{name}_of_script" in part:
            lines.append(f"- {what}, against eager engines in one process: ratio {part[f'ratio_{name}_of_script']:.2f}")
    for side in ("ours", "theirs", "ours_320", "script"):
        runs = [f"{run['seconds']:.1f}{'' if run['warm'] else ' (warming up)'}" for run in part.get(side, ())]
        lines.append(f"- every run of {side}, in seconds: {', '.join(runs)}")
    return lines


def _variants(part: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in part.items():
        if name == "tests":
            lines.append(f"- tests: exit {found['exit']}, {found['output'][-200:]}")
        elif "figures" in found:
            f = found["figures"]
            replays = f"replay {found.get('replay')}, of reads {found.get('replay_reads')}"
            if "replay_scales" in found:
                replays += f", of scales {found['replay_scales']}"
            lines.append(
                f"- {name}: {f['planned_is_landed']} of {f['trials']} trials landed as planned ({f['flips']} flips), "
                f"controls {f['controls_identical']}, flips as the first {found['flips_as_first']}, outputs "
                f"{found['outputs_as_first']}, shuffled {found.get('shuffled_identical')}, {replays}"
            )
            if "codes" in found:
                lines.append(f"  - codes of the backend against the CPU's emulation: {found['codes']}")
            lines += _failure(found)
        else:
            lines += [f"- {name}:", *_failure(found)]
    return lines
