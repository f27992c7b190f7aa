"""Forgeries of a run, each as somebody would make it who rewrites manifest and `run.json` too.

A forgery names the check that has to notice it. `pytest -v tests/runs/test_forgeries.py` prints the table.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat_kit.files import sha256
from telechat_kit.manifest import NAME, write_manifest
from telechat_kit.precision.positions import FIGURES

Forge = Callable[[Path], None]


@dataclass(frozen=True)
class Forgery:
    """`check` is the part of `verify` that notices it; `sealed`: manifest and run.json are made to fit."""

    name: str
    check: str
    forge: Forge
    sealed: bool = True


def edit(run: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place; `change` may return another value."""
    path = run / name
    value = json.loads(path.read_text(encoding="utf-8"))
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed, ensure_ascii=False, indent=2) + "\n")


def seal(run: Path) -> None:
    """What a careful forger does last: hashes in run.json and the manifest fit what lies there."""

    def left(state: dict[str, Any]) -> None:
        for step in state["steps"]:
            step["left"] = {name: sha256(run / name) for name in step["left"] if (run / name).is_file()}

    edit(run, "run.json", left)
    write_manifest(run, "run")


def setting(name: str, *keys: Any, to: Any) -> Forge:
    """Give one place of a JSON file another value; of a function of the old one if it is one."""

    def forge(run: Path) -> None:
        def change(value: Any) -> None:
            for key in keys[:-1]:
                value = value[key]
            value[keys[-1]] = to(value[keys[-1]]) if callable(to) else to

        edit(run, name, change)

    return forge


def figure(*keys: Any, to: Any) -> Forge:
    """Of the divergence in precision.json."""
    return setting("precision.json", "divergence", *keys, to=to)


def times(factor: float) -> Callable[[Any], Any]:
    """An estimate or number, and its interval with it."""

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: one if key == "coverage" else one * factor for key, one in value.items()}
        return value * factor

    return change


def samples(change: Callable[[list[dict[str, Any]]], Any]) -> Forge:
    """Change the raw samples."""

    def forge(run: Path) -> None:
        path = run / "samples.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = change(rows) or rows
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return forge


def each_sample(factor: float, *names: str) -> Forge:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row.update({name: row[name] * factor for name in names if row[name] is not None})

    return samples(change)


def replaced(name: str, old: str, new: str, count: int = 1) -> Forge:
    """Change a text file by hand."""

    def forge(run: Path) -> None:
        text = (run / name).read_text(encoding="utf-8")
        assert old in text, f"{old} is not in {name}"
        (run / name).write_text(text.replace(old, new, count), encoding="utf-8")

    return forge


def removed(name: str) -> Forge:
    return lambda run: (run / name).unlink()


def added(name: str) -> Forge:
    return lambda run: (run / name).write_text("a,b\n1,2\n") and None


def row(index: int, name: str, to: Any) -> Forge:
    """One mean of one sequence."""
    return figure("by_sequence", index, FIGURES.index(name), to=to)


def carried(old: str, new: str) -> Forge:
    """Change the record in the page."""

    def forge(run: Path) -> None:
        path = run / "report.html"
        text = path.read_text(encoding="utf-8")
        begin = text.index('<template id="telechat-kit-run">')
        assert old in text[begin:]
        path.write_text(text[:begin] + text[begin:].replace(old, new, 1), encoding="utf-8")

    return forge


def of_first_text(value: dict[str, Any]) -> None:
    value["kinds"][0]["figures"]["kl_mean"]["value"] /= 2


_CASE = ("performance.json", "cases", 0)
FORGERIES = [
    # figures of precision.json
    Forgery("KL -5 in [-9, 9]", "possible", figure("kl_mean", to={"value": -5.0, "low": -9.0, "high": 9.0, "coverage": 0.95})),
    Forgery("KL 0 in [0, 1]", "figures", figure("kl_mean", to={"value": 0.0, "low": 0.0, "high": 1.0, "coverage": 0.95})),
    Forgery("KL a tenth, old interval", "possible", figure("kl_mean", "value", to=lambda x: x / 10)),
    Forgery("KL and its interval a tenth", "figures", figure("kl_mean", to=times(0.1))),
    Forgery("interval of KL wider", "figures", figure("kl_mean", "high", to=lambda x: 2 * x)),
    Forgery("interval that ends before it begins", "possible", figure("perplexity_ratio", "low", to=9.0)),
    Forgery("perplexity ratio 1", "figures", figure("perplexity_ratio", "value", to=1.0)),
    Forgery("perplexity of float higher", "figures", figure("perplexity_float", to=times(1.1))),
    Forgery("perplexity of W8A8 lower", "figures", figure("perplexity_w8a8", to=times(0.99))),
    Forgery("first choice always the same", "figures", figure("top1_agreement", to={"value": 1.0, "low": 1.0, "high": 1.0, "coverage": 0.95})),
    Forgery("share above 1", "possible", figure("top1_agreement", to={"value": 1.5, "low": 1.4, "high": 1.6, "coverage": 0.95})),
    Forgery("five most likely tokens the same", "figures", figure("top5_agreement", "value", to=1.0)),
    Forgery("mean change of probability", "figures", figure("probability_change", "mean", "value", to=0.0)),
    Forgery("more tokens than were read", "figures", figure("tokens", to=lambda x: 10 * x)),
    Forgery("more sequences than were read", "figures", figure("sequences", to=16)),
    Forgery("one mean of a sequence", "figures", row(0, "kl", lambda x: x / 2)),
    Forgery("all means of sequences 0", "figures", figure("by_sequence", to=lambda rows: [[0.0] * len(row) for row in rows])),
    Forgery("a share that no number of positions has", "possible", row(0, "top1", 0.7123)),
    Forgery("a sequence left out", "figures", figure("by_sequence", to=lambda rows: rows[1:])),
    Forgery("a negative loss", "possible", row(1, "w8a8_loss", -1.0)),
    Forgery("KL at the first positions", "figures", figure("by_position", 0, "kl_mean", to=times(0.5))),
    Forgery("percentiles that fall", "possible", figure("kl_quantiles", "99", "value", to=0.0)),
    Forgery("largest KL below a percentile", "possible", figure("kl_max", to=1e-12)),
    Forgery("median KL above what the mean allows", "possible", figure("kl_quantiles", "50", to=times(1e6))),
    Forgery("KL on one kind of text", "figures", lambda run: edit(run, "precision.json", of_first_text)),
    Forgery("text said to be unlike the calibration's", "settings", setting("precision.json", "like_calibration", to=["made up"])),
    # answers
    Forgery("answers said to be alike", "answers", setting("precision.json", "answers", 0, "similarity", to=lambda x: 1.0 if x < 1 else 0.5)),
    Forgery("more equal tokens", "answers", setting("precision.json", "answers", 0, "common_tokens", to=lambda x: x + 1)),
    Forgery("another answer than its ids", "told", setting("precision.json", "answers", 0, "w8a8_answer", to="Very well, thank you.")),
    Forgery("answers emptied", "files", setting("precision.json", "answers", to=[])),
    Forgery("answers.jsonl replaced", "files", replaced("answers.jsonl", '"w8a8_answer": "', '"w8a8_answer": "Fine. ')),
    Forgery("the guide's lines replaced", "files", replaced("infer_w8a8.jsonl", '"infer": "', '"infer": "Fine. ')),
    Forgery("another question", "origins", setting("precision.json", "answers", 0, "input", to="What else?")),
    # speeds
    Forgery("a speed twice as high", "speeds", setting(*_CASE, "tokens_per_second", to=times(2))),
    Forgery("a narrower interval of a speed", "speeds", setting(*_CASE, "tokens_per_second", "low", to=lambda x: x * 1.0001)),
    Forgery("first token sooner", "speeds", setting(*_CASE, "time_to_first_token", to=times(0.5))),
    Forgery("a varying case called stable", "speeds", setting(*_CASE, "unstable", to=lambda x: not x)),
    Forgery("a higher limit of the device", "speeds", setting(*_CASE, "limit_tokens_per_second", to=times(3))),
    Forgery("cases in another order", "speeds", setting("performance.json", "cases", to=lambda rows: [rows[1], rows[0], *rows[2:]])),
    Forgery("a case left out", "speeds", setting("performance.json", "cases", to=lambda rows: rows[1:])),
    Forgery("published figures", "speeds", setting("performance.json", "published", 0, "npu_310p", to=99.0)),
    Forgery("a drift forgotten", "speeds", setting("performance.json", "drift", to=0.0)),
    Forgery("samples 0", "possible", each_sample(0.0, "seconds", "time_to_first_token", "time_per_output_token")),
    Forgery("samples half as long", "speeds", each_sample(0.5, "seconds", "time_to_first_token", "time_per_output_token")),
    Forgery("seconds of a sample alone", "speeds", each_sample(0.9, "seconds")),
    Forgery("a slow sample left out", "speeds", samples(lambda rows: rows[1:])),
    Forgery("a fast sample twice", "speeds", samples(lambda rows: [*rows, rows[0]])),
    # what was quantized, and what from
    Forgery("half as large weights", "told", setting("quantize.json", "w8a8_bytes", to=lambda x: x // 2)),
    Forgery("larger float weights", "told", setting("quantize.json", "float_bytes", to=lambda x: 2 * x)),
    Forgery("a better linear", "told", setting("quantize.json", "linears", 0, "input_scale", to=lambda x: (x or 1.0) / 2)),
    Forgery("another level", "told", setting("quantize.json", "recipe", "level", to="L0")),
    Forgery("parameters of the model", "told", setting("setup.json", "parts", 0, "parameters", to=lambda x: 10 * x)),
    Forgery("hash of the weights", "origins", setting("quantize.json", "conditions", "hashes", "w8a8_weights", to="0" * 64)),
    Forgery("hash of the text", "origins", setting("precision.json", "text_sha256", to="0" * 64)),
    # run.json and the manifest
    Forgery("another parameter in run.json", "state", setting("run.json", "parameters", "level", to="L0")),
    Forgery("params.yaml", "state", replaced("params.yaml", "level: L2", "level: L0")),
    Forgery("key of a step", "state", setting("run.json", "steps", 0, "key", to="0" * 64)),
    Forgery("a record alone, not sealed", "state", setting("precision.json", "max_new_tokens", to=9), sealed=False),
    Forgery("a file changed, not sealed", "manifest", replaced("report.md", "[", "("), sealed=False),
    Forgery("a file more", "manifest", added("better.csv"), sealed=False),
    Forgery("a file less", "manifest", removed("infer_float.jsonl"), sealed=False),
    Forgery("no manifest any more", "manifest", removed(NAME), sealed=False),
    Forgery("a hash in the manifest", "manifest", setting(NAME, "files", "setup.json", "sha256", to="0" * 64), sealed=False),
    Forgery("run.json denies its manifest", "manifest", setting("run.json", "manifest", to=False)),
    # pages and tables
    Forgery("a figure in report.html", "pages", replaced("report.html", " MB</td>", "0 MB</td>")),
    Forgery("the verdict's sentence", "pages", replaced("report.html", '<p class="verdict">', '<p class="verdict">All is well. ')),
    Forgery("a light", "pages", replaced("report.html", '<span class="light', '<span class="light pass')),
    Forgery("the record that the page carries", "pages", carried('"tokens_per_second":{"value":', '"tokens_per_second":{"value":9')),
    Forgery("a second record in a comment", "pages", replaced("report.html", "<main>", '<!-- <template id="telechat-kit-run">{}</template> --><main>')),
    Forgery("a value shown on a chart", "pages", replaced("report.html", "</title>", "9</title>", 3)),
    Forgery("report.md", "pages", replaced("report.md", "| ", "| 9")),
    Forgery("a CSV table", "pages", replaced("tables/01-may-this-be-shipped.csv", ",", ",9")),
    Forgery("a CSV table more", "pages", added("tables/99-better.csv")),
    Forgery("a CSV table less", "pages", removed("tables/01-may-this-be-shipped.csv")),
]  # fmt: skip
