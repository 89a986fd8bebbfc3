"""Attacks, metrics and marks of WAVES on pictures of 512 pixels, beside Pillow, NumPy and scikit-image one by one.

    python benchmarks/waves.py --output benchmarks/results/waves.md     (under four minutes)
    python benchmarks/waves.py --quick                                  (once each, to see that everything works)

One process, batches of 12 made-up pictures. Ours works on a batch, with a thread a core; the peer is called picture by
picture on one core, as its users call it. Both take turns, and the medians count. invisible-watermark is not installed:
its times (50 ms to embed and 35 ms to read dwtDctSvd, one core) are those of an earlier machine and only stand beside.
Needs scikit-image, as `make parity` installs it.
"""

import argparse
import io
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from alignment.watermark import distortions, marks, quality
from benchmarks import machine
from data.toys import scenes

BATCH, SIDE = 12, 512
AIMS = {"ssim": 3.0, "nmi": 3.0, "Dist-Noise": 1.5}  # times as fast; the others at most 1.5 times Pillow's time
AIMS |= dict.fromkeys(("Dist-JPEG", "Dist-Blur", "Dist-Rotation", "Dist-Bright"), 1 / 1.5)
THEIR_MARK = {"dwt_dct_svd embed": 50.0, "dwt_dct_svd read": 35.0}  # ms a picture


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round")


def jpeg(picture):
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=50)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def noise(pixels):
    noisy = pixels / 255 + np.random.normal(0, 0.05, pixels.shape)
    return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def parts(images):
    """{name: (ours on the batch, the peer on one picture)}"""
    from skimage import metrics

    squeezed = distortions.batch("Dist-JPEG", images, 0.5)
    photos = [PIL.Image.fromarray(image) for image in images]
    message = marks.message(0)
    marked = marks.dwt_dct_svd_embed(images, message)

    def distorted(name, strength):
        return lambda: distortions.batch(name, images, strength)

    return {
        "Dist-JPEG": (distorted("Dist-JPEG", 0.5), lambda i: jpeg(photos[i])),
        "Dist-Blur": (
            distorted("Dist-Blur", 0.2),
            lambda i: np.asarray(photos[i].filter(PIL.ImageFilter.GaussianBlur(4))),
        ),
        "Dist-Rotation": (distorted("Dist-Rotation", 0.2), lambda i: np.asarray(photos[i].rotate(9))),
        "Dist-Bright": (
            distorted("Dist-Bright", 0.4),
            lambda i: np.asarray(PIL.ImageEnhance.Brightness(photos[i]).enhance(1.4)),
        ),
        "Dist-Noise": (distorted("Dist-Noise", 0.5), lambda i: noise(images[i])),
        "psnr": (
            lambda: quality.psnr(images, squeezed),
            lambda i: metrics.peak_signal_noise_ratio(images[i], squeezed[i]),
        ),
        "ssim": (
            lambda: quality.ssim(images, squeezed),
            lambda i: metrics.structural_similarity(images[i], squeezed[i], channel_axis=2),
        ),
        "nmi": (
            lambda: quality.nmi(images, squeezed),
            lambda i: metrics.normalized_mutual_information(images[i], squeezed[i]),
        ),
        "dwt_dct_svd embed": (lambda: marks.dwt_dct_svd_embed(images, message), None),
        "dwt_dct_svd read": (lambda: marks.dwt_dct_svd_read(marked, 48), None),
    }


def seconds(fn):
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    images = scenes.scenes(BATCH, SIDE)
    rows = []
    for name, (ours, theirs) in parts(images).items():
        ours()
        if theirs is not None:
            theirs(0)
        for number in range(1 if args.quick else args.rounds):
            machine.wait_until_quiet(args.patience)
            busy, used = machine.busy_cpu_seconds(), time.process_time()
            mine = seconds(ours)
            others = max(0.0, machine.busy_cpu_seconds() - busy - (time.process_time() - used)) / mine
            peer = None if theirs is None else seconds(lambda theirs=theirs: [theirs(i) for i in range(BATCH)])
            rows.append({"part": name, "round": number, "ours": mine, "peer": peer, "others": others})
    import skimage

    versions = {"numpy": np.__version__, "pillow": PIL.__version__, "scikit-image": skimage.__version__}
    facts = {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    return rows, facts | {"batch": str(BATCH), "side": str(SIDE), "cores": str(len(os.sched_getaffinity(0)))}


def report(rows: list[dict], facts: dict) -> str:
    body = []
    for name in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == name]
        ours = 1_000 * statistics.median(row["ours"] for row in mine) / BATCH
        if mine[0]["peer"] is None:
            body.append([name, f"{1_000 / ours:,.0f}", f"{ours:.1f}", f"{THEIR_MARK[name]:.0f} (stated)", "", ""])
            continue
        peer = 1_000 * statistics.median(row["peer"] for row in mine) / BATCH
        ratios = [row["peer"] / row["ours"] for row in mine]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        body.append(
            [
                name,
                f"{1_000 / ours:,.0f}",
                f"{ours:.1f}",
                f"{peer:.1f}",
                spread,
                f"{AIMS[name]:.2f}" if name in AIMS else "",
            ]
        )
    head = ["part", "ours, pictures/s", "ours, ms", "peer, ms", "times as fast", "aim"]
    noise_line = f"While ours worked, {machine.noise([row['others'] for row in rows])}."
    title = "# WAVES: attacks, metrics and marks at 512 pixels"
    return "\n".join([title, "", machine.table(head, body), "", noise_line, "", machine.notes(facts)])


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
