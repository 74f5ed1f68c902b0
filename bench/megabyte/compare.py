# SPDX-License-Identifier: MIT
"""MEGABYTE-pytorch with its own Attend and with ours, trained from the same seeds: do the loss curves coincide? Prints what
docs/training.md says, and writes it there with the picture. Exits with an error where they do not.

    make -C bench megabyte"""
import io
import multiprocessing
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(Path(__file__).parent)]
import train  # noqa: E402

MARKS = ("<!-- megabyte -->\n", "<!-- /megabyte -->\n")
DROPOUT, SEEDS, LAST, SMOOTH = 0.2, range(1, 9), 50, 20
# Without dropout: the orders of summation that the original itself offers, and ours.
ORDERS = {"original, einsum": dict(), "original, two threads": dict(threads=2), "original, flash": dict(flash=True),
          "ours, flash off": dict(ours=True), "ours, flash on": dict(ours=True, flash=True)}


def run(job):
    return train.train(**dict(job))


def run_all(jobs):
    """Every job once, two at a time, in fresh processes."""
    keys = [tuple(sorted(job.items(), key=lambda item: item[0])) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return dict(zip(keys, pool.imap(run, keys)))


def of(runs, **job):
    return runs[tuple(sorted(job.items(), key=lambda item: item[0]))]


def end(curve):
    return sum(curve[-LAST:]) / LAST


def without_dropout(exact, runs, text):
    """How far every run in f32 is from the original in f64: the loss, at most over the steps, and the weights at the end."""
    print("| run in f32 | loss, largest distance from the original in f64 | weights at the end, root mean square distance |\n"
          "|---|---|---|", file=text)
    distances = {}
    for name, (curve, weights) in runs.items():
        loss, apart = max(abs(a - b) for a, b in zip(curve, exact[0])), float(((weights - exact[1]) ** 2).mean() ** 0.5)
        distances[name] = loss, apart
        print(f"| {name} | {loss:.1e} | {apart:.1e} |", file=text)
    noise, ours = ([max(d[i] for name, d in distances.items() if who in name) for i in (0, 1)] for who in ("original", "ours"))
    print(f"\nThe loss falls from {exact[0][0]:.3f} to {exact[0][-1]:.3f} nats per byte. The noise of the original's own float orders is "
          f"{noise[0]:.1e} in the loss (an ulp of the first loss in f32 is 4.8e-07) and {noise[1]:.1e} in the weights; ours stays "
          f"within {ours[0]:.1e} and {ours[1]:.1e}. (The bound is twice the noise.)\n", file=text)
    return ours[0] <= 2 * noise[0] and ours[1] <= 2 * noise[1]


def with_dropout(runs, text):
    """A paired t-test over seeds of the mean loss of the last steps; the control is ours with dropout forgotten."""
    from scipy.stats import t, ttest_rel
    print(f"| dropout {DROPOUT}, {len(SEEDS)} seeds | original | other | difference, 95% interval | p |\n|---|---|---|---|---|",
          file=text)
    good = True
    for name, first, second in (
            ("ours, flash off", dict(), dict(ours=True)), ("ours, flash on", dict(flash=True), dict(ours=True, flash=True)),
            ("control: ours without dropout", dict(), dict(ours=True, dropout=0.0))):
        a, b = ([end(of(runs, **{"dropout": DROPOUT, "seed": seed, **kind})[0]) for seed in SEEDS] for kind in (first, second))
        apart = [y - x for x, y in zip(a, b)]
        mean = sum(apart) / len(apart)
        deviation = (sum((x - mean) ** 2 for x in apart) / (len(apart) - 1)) ** 0.5
        half = t.ppf(0.975, len(apart) - 1) * deviation / len(apart) ** 0.5
        p = ttest_rel(a, b).pvalue
        good = good and (p < 0.01 if "control" in name else p > 0.01)
        print(f"| {name} | {sum(a) / len(a):.4f} | {sum(b) / len(b):.4f} | {mean - half:+.4f} … {mean + half:+.4f} | "
              f"{p:.1g} |", file=text)
    return good


def draw(exact, plain, runs, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "attend"
    import matplotlib.pyplot as plt
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(8, 9), sharex=True, height_ratios=(3, 2, 3))
    steps = range(1, len(exact) + 1)
    styles = {"original, einsum": ("#d1603d", 4, "-"), "original, two threads": ("#e8b04a", 4, "-"),
              "original, flash": ("#7a8b99", 4, "-"), "ours, flash off": ("#1d6fa5", 1.4, "-"), "ours, flash on": ("black", 1, ":")}
    for name, (curve, _) in plain.items():
        color, width, line = styles[name]
        alpha = 0.55 if "original" in name else 1
        top.plot(steps, curve, line, color=color, linewidth=width, label=name, alpha=alpha)
        apart = [max(abs(a - b), 1e-9) for a, b in zip(curve, exact)]
        middle.plot(steps, apart, line, color=color, linewidth=width / 1.6, alpha=alpha)
    top.set_ylabel("loss, nats per byte")
    top.set_title("MEGABYTE-pytorch with its own Attend and with ours, without dropout", fontsize=10)
    top.legend(fontsize=8)
    middle.set_yscale("log")
    middle.set_ylabel("distance from f64")
    for name, first, second, color in (
            ("ours, flash off", dict(), dict(ours=True), "#1d6fa5"), ("ours, flash on", dict(flash=True), dict(ours=True, flash=True), "black"),
            ("control: ours without dropout", dict(), dict(ours=True, dropout=0.0), "#58a55c")):
        apart = []
        for seed in SEEDS:
            a, b = (of(runs, **{"dropout": DROPOUT, "seed": seed, **kind})[0] for kind in (first, second))
            apart.append([y - x for x, y in zip(a, b)])
        smooth = [[sum(one[i:i + SMOOTH]) / SMOOTH for one in apart] for i in range(len(exact) - SMOOTH + 1)]
        middles = [sum(at) / len(at) for at in smooth]
        errors = [(sum((x - m) ** 2 for x in at) / (len(at) - 1) / len(at)) ** 0.5 for at, m in zip(smooth, middles)]
        where = range(SMOOTH, len(exact) + 1)
        bottom.plot(where, middles, color=color, linewidth=1.2, linestyle=":" if color == "black" else "-", label=name)
        bottom.fill_between(where, [m - 2 * e for m, e in zip(middles, errors)], [m + 2 * e for m, e in zip(middles, errors)],
                            color=color, alpha=0.15, linewidth=0)
    bottom.axhline(0, color="#d1603d", linewidth=0.8)
    bottom.set_title(f"Dropout {DROPOUT}: loss less that of the original, {len(SEEDS)} seeds, mean of {SMOOTH} steps, "
                     "and two standard errors", fontsize=10)
    bottom.set_ylabel("nats per byte")
    bottom.set_xlabel("step")
    bottom.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    kinds = [dict(), dict(ours=True), dict(flash=True), dict(ours=True, flash=True), dict(ours=True, dropout=0.0)]
    dropout_jobs = [{"dropout": DROPOUT, "seed": seed, **kind} for seed in SEEDS for kind in kinds]
    runs = run_all([dict(exact=True), *ORDERS.values(), *dropout_jobs])
    exact = of(runs, exact=True)
    plain = {name: of(runs, **job) for name, job in ORDERS.items()}
    text = io.StringIO()
    same, alike = without_dropout(exact, plain, text), with_dropout(runs, text)
    print(text.getvalue())
    draw(exact[0], plain, runs, ROOT / "docs" / "training.svg")
    page = ROOT / "docs" / "training.md"
    before, rest = page.read_text().split(MARKS[0])
    page.write_text(before + MARKS[0] + text.getvalue() + MARKS[1] + rest.split(MARKS[1])[1])
    sys.exit(0 if same and alike else "the curves differ")


if __name__ == "__main__":
    main()
